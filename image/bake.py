"""Copies models out of the hub's cache of this machine: bake.py [--check | FOLDER] MODEL...

Run by image/build. A hub cache is links between its files, and they stay links.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from musicgen_bento import model_catalog
from musicgen_bento.checkpoint.source import CODEC, MODEL_FILES, T5, cache_folder


def repository(repo: str, files: set[str]) -> Path:
    """Where the cache has a repository; the process ends with a line if it lacks one of the files."""
    found = [try_to_load_from_cache(repo, file, cache_dir=cache_folder()) for file in sorted(files)]
    missing = [file for file, path in zip(sorted(files), found, strict=True) if not isinstance(path, str)]
    if missing:
        sys.exit(
            f"error: {', '.join(missing)} of {repo} is not in the cache of this machine (HF_HOME). "
            "Run musicgen-bento pull with the model where there is a network, then build again."
        )
    return Path(str(found[0])).parents[2]


def main(target: str, *models: str) -> None:
    names = {card.id if (card := model_catalog.find_model(model)) else model for model in models}
    sources = [repository(name, set(MODEL_FILES)) for name in sorted(names - {"demo"})]
    if sources:
        sources.append(repository(T5, {"config.json"}))
        if isinstance(codec := try_to_load_from_cache(CODEC, "config.json", cache_dir=cache_folder()), str):
            sources.append(Path(codec).parents[2])
    if target == "--check":
        return
    for source in sources:
        shutil.copytree(source, Path(target, "hub", source.name), symlinks=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
