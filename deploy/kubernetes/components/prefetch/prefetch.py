"""Fills the hub's cache with the models of the settings. What is there already is not asked for again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache

from musicgen_bento.config import Settings
from musicgen_bento.engine.hub import cache_folder, is_cached
from musicgen_bento.engine.names import resolve
from musicgen_bento.errors import MusicGenError

MODEL_FILES = ["state_dict.bin", "compression_state_dict.bin"]
# T5, which every released MusicGen hears its prompt through; as musicgen_bento/engine/checkpoint.py loads it.
T5 = "t5-base"
T5_FILES = ["config.json", "model.safetensors", "tokenizer*.json", "spiece.model", "special_tokens_map.json"]
T5_NEEDED = ["config.json", "model.safetensors", "spiece.model"]
# A codec file of a few bytes only names this one.
CODEC = "facebook/encodec_32khz"
CODEC_FILES = ["config.json", "model.safetensors"]
NAMES_ONLY = 1_000_000


def wanted(settings: Settings) -> dict[str, tuple[list[str], list[str]]]:
    """Repository → the files without which it is not there, and the patterns to fetch. Folders need nothing."""
    repos = {}
    for name in (settings.default_model, *settings.preload):
        place = resolve(name, any_model=True, folders=True).place
        if not isinstance(place, Path):
            repos[place] = (MODEL_FILES, MODEL_FILES)
    return {T5: (T5_NEEDED, T5_FILES), **repos} if repos else {}


def names_the_codec(repo: str) -> bool:
    """Whether a model in the cache goes without a codec of its own."""
    found = try_to_load_from_cache(repo, MODEL_FILES[1], cache_dir=cache_folder())
    return isinstance(found, str) and Path(found).stat().st_size < NAMES_ONLY


def fetch(repo: str, needed: list[str], patterns: list[str]) -> None:
    """Have a repository's files in the cache; the process ends with a line where that cannot be."""
    if all(is_cached(repo, name) for name in needed):
        print(f"{repo}: in the cache")
        return
    try:
        snapshot_download(repo, allow_patterns=patterns, cache_dir=cache_folder())
    except Exception as error:  # the client, its HTTP library and the disk each have their own
        sys.exit(f"{repo}: cannot be fetched into {os.environ.get('HF_HOME')}: {error}")
    print(f"{repo}: fetched")


def main() -> None:
    """Fetch what is missing."""
    try:
        repos = wanted(Settings())
    except MusicGenError as error:
        sys.exit(f"{error} {error.hint}")
    for repo, (needed, patterns) in repos.items():
        fetch(repo, needed, patterns)
    if any(names_the_codec(repo) for repo in repos):
        fetch(CODEC, CODEC_FILES, CODEC_FILES)


if __name__ == "__main__":
    main()
