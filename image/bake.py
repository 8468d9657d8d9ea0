"""Copies models from this machine's hub cache into a folder for the image: bake.py [--check | FOLDER] MODEL...

image/build runs this script; with --check it only checks that the cache has the models. Files in a hub cache are
symbolic links to blobs, and the copy keeps the links.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from musicgen_bento import model_catalog
from musicgen_bento.checkpoint.source import CODEC, MODEL_FILES, T5, cache_folder


def cached_repository(repo: str, filenames: set[str]) -> Path:
    """Return a repository's folder in the cache; exit with an error message if the cache lacks one of the files."""
    paths = {name: try_to_load_from_cache(repo, name, cache_dir=cache_folder()) for name in sorted(filenames)}
    missing = [name for name, path in paths.items() if not isinstance(path, str)]
    if missing:
        sys.exit(
            f"error: {', '.join(missing)} of {repo} is not in the cache of this machine (HF_HOME). "
            "On a machine with network access, run `musicgen-bento pull` with the model; then build again."
        )
    return _repository_of(str(next(iter(paths.values()))))


def _repository_of(file: str) -> Path:
    """Return the repository's folder of a cached file: <repository>/snapshots/<commit>/<file>."""
    return Path(file).parents[2]


def main(target: str, *models: str) -> None:
    """Copy the models' repositories, T5 and the codec into target/hub, or only check for them (`--check`)."""
    ids = {card.id if (card := model_catalog.find_model(model)) else model for model in models}
    repositories = [cached_repository(repo, set(MODEL_FILES)) for repo in sorted(ids - {"demo"})]
    if repositories:
        repositories.append(cached_repository(T5, {"config.json"}))
        codec_config = try_to_load_from_cache(CODEC, "config.json", cache_dir=cache_folder())
        if isinstance(codec_config, str):  # models that contain their codec do not need this repository
            repositories.append(_repository_of(codec_config))
    if target == "--check":
        return
    for repository in repositories:
        shutil.copytree(repository, Path(target, "hub", repository.name), symlinks=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
