"""How requests may set the level and the format of the audio. Standard library only, so the help needs no pydantic."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Normalize: TypeAlias = Literal["loudness", "peak", "rms", "clip", "none"]
StreamNormalize: TypeAlias = Literal["clip", "none"]
StreamFormat: TypeAlias = Literal["wav", "pcm"]

NORMALIZE_CHOICES: tuple[str, ...] = get_args(Normalize)
FORMATS: tuple[str, ...] = get_args(StreamFormat)
