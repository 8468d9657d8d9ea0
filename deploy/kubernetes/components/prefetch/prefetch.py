"""Fills the hub's cache with the models of the settings. What is there already is not asked for again."""

from __future__ import annotations

import os
import sys

from huggingface_hub import snapshot_download, try_to_load_from_cache

from musicgen_bento.catalogue import find
from musicgen_bento.config import Settings

MODEL_FILES = ["state_dict.bin", "compression_state_dict.bin"]
# T5, which every released MusicGen hears its prompt through; as musicgen_bento/engine/checkpoint.py loads it.
T5 = "t5-base"
T5_FILES = ["config.json", "model.safetensors", "tokenizer*.json", "spiece.model", "special_tokens_map.json"]
T5_NEEDED = ["config.json", "model.safetensors", "spiece.model"]


def wanted(settings: Settings) -> dict[str, tuple[list[str], list[str]]]:
    """Repository → the files without which it is not there, and the patterns to fetch."""
    repos = {}
    for name in (settings.default_model, *settings.preload):
        card = find(name)
        if card is None or card.folder is None:
            repos[card.id if card else name] = (MODEL_FILES, MODEL_FILES)
    return {T5: (T5_NEEDED, T5_FILES), **repos} if repos else {}


def main() -> int:
    """Fetch what is missing; 1 when something could not be had."""
    for repo, (needed, patterns) in wanted(Settings()).items():
        if all(isinstance(try_to_load_from_cache(repo, name), str) for name in needed):
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
