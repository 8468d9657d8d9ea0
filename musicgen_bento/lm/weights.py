"""The tensors of the language model by role, and its sizes.

The checkpoint package reads the tensors, and the decoders use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.lm.delay_pattern import DelayPattern
from musicgen_bento.lm.linear import DenseLinear, Linear, PackedFp16Linear
from musicgen_bento.precision import ModelSize, Precision

ONE_THREAD_HEAD_PARAMS = 4_000_000  # below, one thread is fastest; the heads of musicgen-small have 8.4 million


@dataclass(frozen=True, slots=True)
class LMShape:
    """The sizes of a MusicGen language model.

    Attributes:
        dim: width of the residual stream.
        hidden: width between the two linear layers of the feed-forward part.
        heads: attention heads.
        layers: transformer layers.
        codebook_size: entries of a codebook; the special token is the id after them.
        pattern: the delays of the codebooks.
        window: maximum number of frames in one sequence.
        text_conditioning: `cross` (cross-attention to the prompt) or `prepend` (the prompt precedes the tokens).
    """

    dim: int
    hidden: int
    heads: int
    layers: int
    codebook_size: int
    pattern: DelayPattern
    window: int
    text_conditioning: str

    @property
    def codebooks(self) -> int:
        """The number of codebooks, K."""
        return self.pattern.codebooks

    @property
    def head_dim(self) -> int:
        """The width of an attention head, D."""
        return self.dim // self.heads

    def num_threads(self, max_threads: int | None = None) -> int:
        """The number of threads that a step is fastest with.

        It is 1 for a small model, whose products end before a second core starts.

        Args:
            max_threads: maximum number of threads; None means torch's number.
        """
        is_small = self.codebooks * self.codebook_size * self.dim < ONE_THREAD_HEAD_PARAMS
        return 1 if is_small else max_threads or torch.get_num_threads()


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A layer norm over `dim`, eps 1e-5."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize [..., dim] → [..., dim]."""
        return torch.nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


@dataclass(frozen=True, slots=True)
class CrossAttentionWeights:
    """Weights of the cross-attention to the prompt, whose keys and values are computed once per request."""

    norm: LayerNorm
    query: Linear  # [dim, dim]
    key_value: Linear  # [2 * dim, dim]
    out: Linear  # [dim, dim]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one transformer layer, pre-norm, without biases."""

    norm1: LayerNorm
    query_key_value: Linear  # [3 * dim, dim]
    out: Linear  # [dim, dim]
    cross: CrossAttentionWeights | None
    norm2: LayerNorm
    linear1: Linear  # [hidden, dim]
    linear2: Linear  # [dim, hidden]


@dataclass(frozen=True, slots=True)
class LMWeights:
    """Weights of the language model, the projection of the prompt included."""

    shape: LMShape
    precision: Precision
    embeddings: Tensor  # [K, codebook_size + 1, dim]
    layers: tuple[LayerWeights, ...]
    out_norm: LayerNorm
    output_heads: Linear  # [K * codebook_size, dim]
    text_weight: Tensor  # [dim, text dim]
    text_bias: Tensor  # [dim]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.embeddings.device

    @property
    def size(self) -> ModelSize:
        """The number of parameters, of all tensors and of the linear layers."""
        leaves = list(_leaves(self))
        num_matmul_params = sum(leaf.num_params for leaf in leaves if not isinstance(leaf, Tensor))
        num_other_params = sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor))
        return ModelSize(num_matmul_params + num_other_params, num_matmul_params)


def wavelengths(dim: int, device: torch.device) -> Tensor:
    """The wavelengths of the position embeddings, [dim / 2]."""
    exponent = torch.arange(dim // 2, dtype=torch.float32, device=device) / (dim // 2 - 1)
    return torch.full([], 10_000.0, device=device) ** exponent


def sinusoidal_embeddings(positions: Tensor, wavelengths: Tensor) -> Tensor:
    """Embeddings [N, dim] of positions [N] (Vaswani et al. 2017), cosines first as in AudioCraft."""
    phase = positions[:, None].float() / wavelengths
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def _leaves(part: Any) -> Iterator[Tensor | Linear]:
    """Yield the tensors and linear layers of a part of the model, its nested parts included."""
    if isinstance(part, Tensor | DenseLinear | PackedFp16Linear):
        yield part
    elif isinstance(part, tuple):
        for inner in part:
            yield from _leaves(inner)
    elif isinstance(part, LayerNorm | CrossAttentionWeights | LayerWeights | LMWeights):
        for field in fields(part):
            yield from _leaves(getattr(part, field.name))
