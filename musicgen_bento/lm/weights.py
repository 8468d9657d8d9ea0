"""The language model's tensors, by what they do. `checkpoint.py` fills them in, `decoder.py` multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.lm.delay_pattern import DelayPattern
from musicgen_bento.lm.linear import DenseLinear, Linear, PackedFp16Linear
from musicgen_bento.precision import ModelSize, Precision

MAX_PROMPT_TOKENS = 512
"""Most T5 tokens of a prompt."""

SMALL_HEADS = 4_000_000  # numbers; musicgen-small's heads have 8.4 million


@dataclass(frozen=True, slots=True)
class LMShape:
    """The sizes of a MusicGen language model.

    Attributes:
        dim: width.
        hidden: width between the two linears of a layer.
        heads: of attention.
        layers: depth.
        card: entries of a codebook; the special token is the id after them.
        pattern: the delays of its codebooks.
        window: most frames in one sequence.
        text: how the prompt comes in: `cross` (cross-attention) or `prepend` (before the tokens).
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
        """K."""
        return self.pattern.codebooks

    @property
    def head_dim(self) -> int:
        """D."""
        return self.dim // self.heads

    def num_threads(self, most: int | None = None) -> int:
        """How many a step is best run on: one where a product is over before a second core has begun.

        Args:
            most: there may be; None is torch's number.
        """
        small = self.codebooks * self.codebook_size * self.dim < SMALL_HEADS
        return 1 if small else most or torch.get_num_threads()


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """A layer norm over the width, eps 1e-5."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """[..., dim] → [..., dim]."""
        return torch.nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


@dataclass(frozen=True, slots=True)
class CrossAttentionWeights:
    """Attention to the prompt. Keys and values are made once a clip."""

    norm: LayerNorm
    query: Linear  # [dim, dim]
    key_value: Linear  # [2 * dim, dim]
    out: Linear  # [dim, dim]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One transformer layer, pre-norm, without biases."""

    norm1: LayerNorm
    query_key_value: Linear  # [3 * dim, dim]
    out: Linear  # [dim, dim]
    cross: CrossAttentionWeights | None
    norm2: LayerNorm
    linear1: Linear  # [hidden, dim]
    linear2: Linear  # [dim, hidden]


@dataclass(frozen=True, slots=True)
class LMWeights:
    """All of the language model, the projection of the text included."""

    shape: LMShape
    precision: Precision
    embeddings: Tensor  # [K, card + 1, dim]
    layers: tuple[LayerWeights, ...]
    out_norm: LayerNorm
    output_heads: Linear  # [K * card, dim]
    text_weight: Tensor  # [dim, text dim]
    text_bias: Tensor  # [dim]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.embeddings.device

    @property
    def size(self) -> ModelSize:
        """How many numbers there are, and where."""
        parts = list(_parts(self))
        products = [part for part in parts if not isinstance(part, Tensor)]
        in_matrices = sum(product.num_params for product in products)
        numbers = in_matrices + sum(part.numel() for part in parts if isinstance(part, Tensor))
        return ModelSize(numbers, in_matrices)


def wavelengths(dim: int, device: torch.device) -> Tensor:
    """Of the embeddings of positions, [dim / 2]."""
    exponent = torch.arange(dim // 2, dtype=torch.float32, device=device) / (dim // 2 - 1)
    return torch.full([], 10_000.0, device=device) ** exponent


def sinusoidal_embeddings(positions: Tensor, over: Tensor) -> Tensor:
    """Embeddings [N, dim] of positions [N], by their periods (Vaswani et al. 2017), cosines first as in AudioCraft."""
    phase = positions[:, None].float() / over
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


def _parts(part: Any) -> Iterator[Tensor | Linear]:
    """The tensors and products of a part of the model, and of its parts."""
    if isinstance(part, Tensor | DenseLinear | PackedFp16Linear):
        yield part
    elif isinstance(part, tuple):
        for inner in part:
            yield from _parts(inner)
    elif isinstance(part, LayerNorm | CrossAttentionWeights | LayerWeights | LMWeights):
        for field in fields(part):
            yield from _parts(getattr(part, field.name))
