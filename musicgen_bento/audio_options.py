"""The choices of normalization and format. Standard library only, so that the help of the command needs no pydantic."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Normalize: TypeAlias = Literal["loudness", "peak", "rms", "clip", "none"]
StreamNormalize: TypeAlias = Literal["clip", "none"]
StreamFormat: TypeAlias = Literal["wav", "pcm"]

NORMALIZE_CHOICES: tuple[str, ...] = get_args(Normalize)
FORMATS: tuple[str, ...] = get_args(StreamFormat)
