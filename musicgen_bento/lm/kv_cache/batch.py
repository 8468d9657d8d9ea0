"""A float KV cache of all sequences of a batch in one tensor, for CUDA graphs."""

from __future__ import annotations

from functools import partial

import torch

from musicgen_bento.lm.weights import LMShape, LMWeights
from musicgen_bento.native.bindings import round_up

LENGTH_STEP = 256  # the positions of a row are a multiple of this


class BatchKVCache:
    """Keys and values of all batch slots; zeros where a slot is free, because masked values are still multiplied.

    Attributes:
        self_kv: self-attention, [layers, 2, batch_size, 2 rows, H, positions, D].
        cross_kv: the prompts, [layers, 2, batch_size, H, L, D]; L is 0 if the model prepends them.
        prompt_lengths: tokens of each prompt, [batch_size].
    """

    def __init__(self, weights: LMWeights, batch_size: int, max_prompt_tokens: int) -> None:
        shape = weights.shape
        positions, cross_positions = self._lengths(shape, max_prompt_tokens)
        zeros = partial(torch.zeros, dtype=weights.precision.kv_dtype, device=weights.device)
        self.self_kv = zeros((shape.layers, 2, batch_size, 2, shape.heads, positions, shape.head_dim))
        self.cross_kv = zeros((shape.layers, 2, batch_size, shape.heads, cross_positions, shape.head_dim))
        self.prompt_lengths = torch.ones(batch_size, dtype=torch.int64, device=weights.device)
        self.batch_size, self.max_prompt_tokens = batch_size, max_prompt_tokens

    @classmethod
    def num_bytes(cls, weights: LMWeights, batch_size: int, max_prompt_tokens: int) -> int:
        """Bytes of a cache of this size."""
        shape = weights.shape
        positions, cross_positions = cls._lengths(shape, max_prompt_tokens)
        elements = 2 * shape.layers * batch_size * shape.dim * (2 * positions + cross_positions)
        return elements * weights.precision.kv_dtype.itemsize

    @staticmethod
    def _lengths(shape: LMShape, max_prompt_tokens: int) -> tuple[int, int]:
        """Positions of a row in self-attention, and in cross-attention."""
        prefix = max_prompt_tokens if shape.text_conditioning == "prepend" else 0
        positions = round_up(prefix + shape.pattern.last_position(shape.window), LENGTH_STEP)
        return positions, max_prompt_tokens - prefix

    def clear(self, index: int) -> None:
        """Zero a batch slot for a new sequence: old values may be infinite, and 0 times infinity is NaN."""
        self.self_kv[:, :, index].zero_()
        self.cross_kv[:, :, index].zero_()

    def copy_from(self, index: int, source: BatchKVCache, source_index: int, length: int) -> None:
        """Copy `length` positions and the prompt from a batch slot of another cache, or of this one."""
        self.self_kv[:, :, index, :, :, :length] = source.self_kv[:, :, source_index, :, :, :length]
        self.cross_kv[:, :, index, :, : source.max_prompt_tokens] = source.cross_kv[:, :, source_index]
        self.prompt_lengths[index] = source.prompt_lengths[source_index]
