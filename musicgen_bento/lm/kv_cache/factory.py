"""Creates the KV cache for a precision, and computes the bytes that a request needs."""

from __future__ import annotations

from typing import TypeAlias

import torch

from musicgen_bento.lm.kv_cache.dense import DenseKVCache
from musicgen_bento.lm.kv_cache.int8 import Int8KVCache
from musicgen_bento.lm.kv_cache.paged import block_bytes, can_fuse_prompt, fused_prompt_bytes, num_blocks
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.precision import Precision

KVCache: TypeAlias = DenseKVCache | Int8KVCache


def create_kv_cache(
    shape: LMShape, precision: Precision, device: torch.device, rows: int, max_positions: int
) -> KVCache:
    """Create an empty cache for torch.

    Args:
        shape: the shape of the language model.
        precision: the precision of the model.
        device: the device of the cache.
        rows: 1, or 2 with classifier-free guidance.
        max_positions: maximum number of positions of the sequence, a prepended prompt included.
    """
    if precision.kv_dtype == torch.uint8:
        return Int8KVCache(shape.layers, rows, shape.heads, max_positions, shape.head_dim)
    size = (shape.layers, 2, rows, shape.heads, max_positions, shape.head_dim)
    # The system provides memory page by page as it is written, so a request takes memory for what it has filled.
    return DenseKVCache(torch.empty(size, dtype=precision.kv_dtype, device=device))


def request_kv_bytes(shape: LMShape, precision: Precision, rows: int, positions: int, prompt_tokens: int) -> int:
    """Compute the bytes of the keys and values of one request, self-attention and cross-attention.

    Args:
        shape: the shape of the language model.
        precision: the precision of the model.
        rows: 1, or 2 with classifier-free guidance.
        positions: positions of the longest window.
        prompt_tokens: T5 tokens of the prompt.
    """
    if shape.text_conditioning == "prepend":
        positions, prompt_tokens = prompt_tokens + positions, 0
    if precision.native_kernel:
        blocks = rows * num_blocks(positions)
        if can_fuse_prompt(precision, prompt_tokens):
            return block_bytes(shape, precision) * blocks + fused_prompt_bytes(shape, prompt_tokens)
        return block_bytes(shape, precision) * (blocks + num_blocks(prompt_tokens))
    cross = 2 * shape.layers * shape.dim * prompt_tokens * precision.compute_dtype.itemsize
    if precision.kv_dtype == torch.uint8:
        return cross + Int8KVCache.num_bytes(shape.layers, rows, shape.heads, positions, shape.head_dim)
    return cross + 2 * shape.layers * shape.dim * rows * positions * precision.kv_dtype.itemsize
