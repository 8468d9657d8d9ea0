"""Which cache a precision has, and what a clip takes with it."""

from __future__ import annotations

from typing import TypeAlias

import torch

from musicgen_bento.lm.kv_cache.dense import KVCache
from musicgen_bento.lm.kv_cache.int8 import QuantizedKVCache
from musicgen_bento.lm.kv_cache.paged import block_bytes, count, folded_bytes, folds
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.precision import Precision

Cache: TypeAlias = KVCache | QuantizedKVCache


def cache(shape: LMShape, precision: Precision, device: torch.device, rows: int, positions: int) -> Cache:
    """An empty cache.

    Args:
        shape: of the language model.
        precision: of it.
        device: where it is.
        rows: 1, or 2 with classifier-free guidance.
        positions: most that it will hold, a prepended prompt's included.
    """
    if precision.cache == torch.uint8:
        return QuantizedKVCache(shape.layers, rows, shape.heads, positions, shape.head_dim)
    size = (shape.layers, 2, rows, shape.heads, positions, shape.head_dim)
    # the system hands out pages as they are written, so a clip takes memory for what it has filled
    return KVCache(torch.empty(size, dtype=precision.cache, device=device))


def clip_bytes(shape: LMShape, precision: Precision, rows: int, positions: int, prompt: int) -> int:
    """What one clip makes the model remember: keys and values of each layer.

    Args:
        shape: of the language model.
        precision: of it.
        rows: 1, or 2 with classifier-free guidance.
        positions: of the longest window.
        prompt: T5 tokens.
    """
    if shape.text == "prepend":
        positions, prompt = prompt + positions, 0
    if precision.packed:
        blocks = rows * count(positions)
        if folds(precision, prompt):
            return block_bytes(shape, precision) * blocks + folded_bytes(shape, prompt)
        return block_bytes(shape, precision) * (blocks + count(prompt))
    cross = 2 * shape.layers * shape.dim * prompt * precision.rest.itemsize
    if precision.cache == torch.uint8:
        return cross + QuantizedKVCache.bytes(shape.layers, rows, shape.heads, positions, shape.head_dim)
    return cross + 2 * shape.layers * shape.dim * rows * positions * precision.cache.itemsize
