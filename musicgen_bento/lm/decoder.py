"""The language model's forward pass over rows of many clips at once.

All linear products run over the rows of all clips together; attention runs clip by clip, over just the positions
that clip has filled. With classifier-free guidance a clip has two rows, one that hears the prompt and one that does
not. AudioCraft feeds the deaf row an all-zero text, whose cross-attention is exactly zero (no biases): here it has no
cross-attention at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento.lm.kv_cache.factory import KVCache, create_kv_cache, request_kv_bytes
from musicgen_bento.lm.kv_cache.paged import PagedKVCache
from musicgen_bento.lm.sampling import SamplingParams, sample
from musicgen_bento.lm.weights import (
    CrossAttentionWeights,
    LayerWeights,
    LMShape,
    LMWeights,
    sinusoidal_embeddings,
    wavelengths,
)
from musicgen_bento.precision import Precision

TokenColumns: TypeAlias = list[list[int]]
"""Tokens of a position of B clips, [B][K]."""


@dataclass(frozen=True, slots=True)
class KVCacheRequest:
    """How much there is of a clip to remember.

    Attributes:
        rows: 1, or 2 with classifier-free guidance.
        positions: of the longest window.
        prompt: T5 tokens.
    """

    rows: int
    positions: int
    prompt: int


@dataclass(slots=True)
class SequenceState:
    """What the model remembers of one clip in the window it is in.

    Attributes:
        rows: 1, or 2 with classifier-free guidance; the first hears the prompt.
        cache: self-attention.
        text: the projected prompt [L, dim].
        cross: keys and values of the prompt for each layer, [1, H, L, D]; empty where text is prepended.
    """

    rows: int
    cache: KVCache | PagedKVCache
    text: Tensor
    cross: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class _Span:
    """The rows of one sequence in the flat batch: [begin, end), `positions` of them for each of its rows."""

    sequence: SequenceState
    begin: int
    end: int
    positions: int

    @property
    def hearing(self) -> range:
        """The rows that hear the prompt."""
        return range(self.begin, self.begin + self.positions)


class Decoder(ABC):
    """Runs the language model. Every method is called from one thread.

    Attributes:
        shape: of the model.
        precision: of the model.
    """

    def __init__(self, shape: LMShape, precision: Precision, embeddings: Tensor) -> None:
        self.shape, self.precision = shape, precision
        self._embeddings, self._device = embeddings, embeddings.device
        self._periods = wavelengths(shape.dim, self._device)
        self._offsets = torch.arange(shape.codebooks, device=self._device)[:, None] * (shape.codebook_size + 1)

    @abstractmethod
    def open(self, text: Tensor, guided: bool, positions: int) -> SequenceState:
        """Begin a clip.

        Args:
            text: the projected prompt [L, dim].
            guided: whether classifier-free guidance needs the second row.
            positions: most positions of a window.
        """

    @abstractmethod
    def close(self, sequence: SequenceState) -> None:
        """The clip is over."""

    @abstractmethod
    def prefill(self, sequence: SequenceState, inputs: Tensor) -> None:
        """Read positions that are known already, [rows, T, dim], and remember them."""

    @abstractmethod
    def step(self, sequences: list[SequenceState], tokens: Tensor, cfg_coef: Tensor) -> Tensor:
        """One position for each of B sequences.

        Args:
            sequences: B of them.
            tokens: what each reads, [B, K].
            cfg_coef: guidance [B]; ignored for sequences of one row.

        Returns:
            Logits of the next position [B, K, card], float32, guidance applied.
        """

    def kv_cache_bytes(self, clips: list[KVCacheRequest]) -> int:
        """What such clips make it remember together, while the last of them joins."""
        return sum(
            request_kv_bytes(self.shape, self.precision, need.rows, need.positions, need.prompt) for need in clips
        )

    def prompt_prefix(self, sequence: SequenceState) -> Tensor:
        """What precedes the tokens of each window, [rows, L, dim]: the prompt where the model prepends it."""
        if self.shape.text_conditioning != "prepend":
            return sequence.text.new_empty(sequence.rows, 0, self.shape.dim)
        silent = torch.zeros_like(sequence.text)
        return torch.stack([sequence.text, silent][: sequence.rows])

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [K, T] → [T, dim]: the sum of the codebooks' embeddings."""
        return self._embeddings.flatten(0, 1)[tokens + self._offsets].sum(dim=0)

    @torch.inference_mode()
    def step_and_sample(
        self,
        sequences: list[SequenceState],
        tokens: TokenColumns,
        cfg_coef: Tensor,
        rows: SamplingParams,
        keys: list[int],
    ) -> TokenColumns:
        """One position for each of B sequences, sampled.

        A step has used up every cache of the processor, so that a call of torch for a few numbers takes a tenth of a
        millisecond: what is read and drawn are plain numbers.

        Args:
            sequences: B of them.
            tokens: what each reads, [B][K].
            cfg_coef: guidance [B]; ignored for sequences of one row.
            rows: parameters of sampling.
            keys: what the draws are keyed by, [B].

        Returns:
            Tokens [B][K]; of a clip whose logits are not finite, -1 among them.
        """
        logits = self.step(sequences, torch.tensor(tokens, device=self._device), cfg_coef)
        drawn: TokenColumns = mark_nonfinite(
            logits, sample(logits, rows, torch.tensor(keys, device=self._device))
        ).tolist()
        return drawn

    def sinusoids(self, positions: Tensor) -> Tensor:
        """See `weights.sinusoids`."""
        return sinusoidal_embeddings(positions, self._periods)


class EagerDecoder(Decoder):
    """See `Decoder`. By torch, operator by operator."""

    def __init__(self, weights: LMWeights) -> None:
        super().__init__(weights.shape, weights.precision, weights.embeddings)
        self.weights = weights

    def open(self, text: Tensor, guided: bool, positions: int) -> SequenceState:
        """See `Decoder.open`."""
        shape, weights = self.shape, self.weights
        rows = 2 if guided else 1
        prefix = len(text) if shape.text_conditioning == "prepend" else 0
        own = create_kv_cache(shape, weights.precision, weights.device, rows, prefix + positions)
        cross = [self._cross_keys(layer.cross, text) for layer in weights.layers if layer.cross is not None]
        return SequenceState(rows, own, text, cross)

    def close(self, sequence: SequenceState) -> None:
        """See `Decoder.close`."""

    @torch.inference_mode()
    def prefill(self, sequence: SequenceState, inputs: Tensor) -> None:
        """See `Decoder.prefill`."""
        positions = inputs.shape[1]
        span = _Span(sequence, 0, sequence.rows * positions, positions)
        self._forward(inputs.reshape(-1, self.shape.dim), [span])

    @torch.inference_mode()
    def step(self, sequences: list[SequenceState], tokens: Tensor, cfg_coef: Tensor) -> Tensor:
        """See `Decoder.step`."""
        counts = [sequence.rows for sequence in sequences]
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        spans = [_Span(s, end - s.rows, end, 1) for s, end in zip(sequences, ends, strict=True)]
        x = self.embed(tokens.T).repeat_interleave(torch.tensor(counts, device=tokens.device), dim=0)
        x = self.weights.out_norm(self._forward(x, spans))
        logits = self.weights.output_heads(x).float().view(len(x), self.shape.codebooks, self.shape.codebook_size)
        hearing = logits[[span.begin for span in spans]]
        deaf = logits[[span.end - 1 for span in spans]]
        return deaf + (hearing - deaf) * cfg_coef[:, None, None]  # of one row: hearing + 0

    def _forward(self, x: Tensor, spans: list[_Span]) -> Tensor:
        """Flat rows [R, dim] through all layers. Positions are the caches' next ones."""
        x = x + self._positions(spans).to(x.dtype)
        hearing = torch.tensor([row for span in spans for row in span.hearing], device=x.device)
        for index, layer in enumerate(self.weights.layers):
            x += layer.out(self._self_attention(index, layer, x, spans))
            if layer.cross is not None:
                x.index_add_(0, hearing, self._cross_attention(index, layer.cross, x[hearing], spans))
            x += layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        for span in spans:
            span.sequence.cache.advance(span.positions)
        return x

    def _positions(self, spans: list[_Span]) -> Tensor:
        """Embeddings [R, dim] of the rows' positions."""
        at: list[int] = []
        for span in spans:
            begin = span.sequence.cache.length
            at += list(range(begin, begin + span.positions)) * span.sequence.rows
        return self.sinusoids(torch.tensor(at, device=self._device))

    def _self_attention(self, index: int, layer: LayerWeights, x: Tensor, spans: list[_Span]) -> Tensor:
        """What rows [R, dim] find in their own past, [R, dim]."""
        shape = self.shape
        packed = layer.query_key_value(layer.norm1(x))
        found = []
        for span in spans:
            rows, positions = span.sequence.rows, span.positions
            parts = packed[span.begin : span.end].view(rows, positions, 3, shape.heads, shape.head_dim)
            parts = parts.permute(2, 0, 3, 1, 4)  # [3, rows, H, T, D]
            cache = span.sequence.cache
            assert not isinstance(cache, PagedKVCache)  # the kernel's
            heard = cache.attend(index, parts[0], parts[1:])
            found.append(heard.transpose(1, 2).reshape(rows * positions, shape.dim))
        return _rows(found)

    def _cross_attention(self, index: int, cross: CrossAttentionWeights, x: Tensor, spans: list[_Span]) -> Tensor:
        """What hearing rows [R', dim] find in their prompts, [R', dim]."""
        shape = self.shape
        queries = cross.query(cross.norm(x))
        found = []
        for span, rows in zip(spans, torch.split(queries, [span.positions for span in spans]), strict=True):
            query = rows.view(1, span.positions, shape.heads, shape.head_dim).transpose(1, 2)
            heard = F.scaled_dot_product_attention(query, *span.sequence.cross[index])
            found.append(heard.transpose(1, 2).reshape(span.positions, shape.dim))
        return cross.out(_rows(found))

    def _cross_keys(self, cross: CrossAttentionWeights, text: Tensor) -> tuple[Tensor, Tensor]:
        shape = self.shape
        packed = cross.key_value(text).view(1, len(text), 2, shape.heads, shape.head_dim)
        keys, values = packed.permute(2, 0, 3, 1, 4)  # [1, H, L, D] each
        return keys.contiguous(), values.contiguous()


def mark_nonfinite(logits: Tensor, drawn: Tensor) -> Tensor:
    """Tokens [B, K] drawn from logits [B, K, card], or -1 where those are not finite."""
    broken = ~logits.isfinite().flatten(1).all(dim=1)
    return drawn.masked_fill(broken[:, None], -1)


def _rows(parts: list[Tensor]) -> Tensor:
    """One under the other."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]
