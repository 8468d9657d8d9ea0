"""Fills the hub's cache with the models of the settings. What is there already is not asked for again."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from huggingface_hub import snapshot_download

from musicgen_bento.config import Settings
from musicgen_bento.engine.hub import is_cached
from musicgen_bento.engine.names import resolve
from musicgen_bento.errors import MusicGenError

MODEL_FILES = ["state_dict.bin", "compression_state_dict.bin"]
# T5, which every released MusicGen hears its prompt through; as musicgen_bento/engine/checkpoint.py loads it.
T5 = "t5-base"
T5_FILES = ["config.json", "model.safetensors", "tokenizer*.json", "spiece.model", "special_tokens_map.json"]
T5_NEEDED = ["config.json", "model.safetensors", "spiece.model"]


def wanted(settings: Settings) -> dict[str, tuple[list[str], list[str]]]:
    """Repository → the files without which it is not there, and the patterns to fetch. Folders need nothing."""
    repos = {}
    for name in (settings.default_model, *settings.preload):
        place = resolve(name, any_model=True, folders=True).place
        if not isinstance(place, Path):
            repos[place] = (MODEL_FILES, MODEL_FILES)
    return {T5: (T5_NEEDED, T5_FILES), **repos} if repos else {}


def main() -> int:
    """Fetch what is missing; 1 when something could not be had."""
    try:
        repos = wanted(Settings())
    except MusicGenError as error:
        print(f"{error} {error.hint}", file=sys.stderr)
        return 1
    for repo, (needed, patterns) in repos.items():
        if all(is_cached(repo, name) for name in needed):
            print(f"{repo}: in the cache")
            continue
        try:
            snapshot_download(repo, allow_patterns=patterns)
        except Exception as error:  # the client, its HTTP library and the disk each have their own
            print(f"{repo}: cannot be fetched into {os.environ.get('HF_HOME')}: {error}", file=sys.stderr)
            return 1
        print(f"{repo}: fetched")
    return 0


if __name__ == "__main__":
    sys.exit(main())
