"""Which cache a precision has, and what a clip takes with it."""

from __future__ import annotations

from typing import TypeAlias

import torch

from musicgen_bento.lm.kv_cache.dense import DenseKVCache
from musicgen_bento.lm.kv_cache.int8 import Int8KVCache
from musicgen_bento.lm.kv_cache.paged import block_bytes, can_fuse_prompt, fused_prompt_bytes, num_blocks
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.precision import Precision

KVCache: TypeAlias = DenseKVCache | Int8KVCache


def create_kv_cache(shape: LMShape, precision: Precision, device: torch.device, rows: int, positions: int) -> KVCache:
    """An empty cache.

    Args:
        shape: of the language model.
        precision: of it.
        device: where it is.
        rows: 1, or 2 with classifier-free guidance.
        positions: most that it will hold, a prepended prompt's included.
    """
    if precision.kv_dtype == torch.uint8:
        return Int8KVCache(shape.layers, rows, shape.heads, positions, shape.head_dim)
    size = (shape.layers, 2, rows, shape.heads, positions, shape.head_dim)
    # the system hands out pages as they are written, so a clip takes memory for what it has filled
    return DenseKVCache(torch.empty(size, dtype=precision.kv_dtype, device=device))


def request_kv_bytes(shape: LMShape, precision: Precision, rows: int, positions: int, prompt: int) -> int:
    """What one clip makes the model remember: keys and values of each layer.

    Args:
        shape: of the language model.
        precision: of it.
        rows: 1, or 2 with classifier-free guidance.
        positions: of the longest window.
        prompt: T5 tokens.
    """
    if shape.text_conditioning == "prepend":
        positions, prompt = prompt + positions, 0
    if precision.native_kernel:
        blocks = rows * num_blocks(positions)
        if can_fuse_prompt(precision, prompt):
            return block_bytes(shape, precision) * blocks + fused_prompt_bytes(shape, prompt)
        return block_bytes(shape, precision) * (blocks + num_blocks(prompt))
    cross = 2 * shape.layers * shape.dim * prompt * precision.compute_dtype.itemsize
    if precision.kv_dtype == torch.uint8:
        return cross + Int8KVCache.num_bytes(shape.layers, rows, shape.heads, positions, shape.head_dim)
    return cross + 2 * shape.layers * shape.dim * rows * positions * precision.kv_dtype.itemsize
