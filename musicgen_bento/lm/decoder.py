"""The decoder interface of the language model, and its eager torch implementation.

Linear layers run over the rows of all sequences together. Attention runs sequence by sequence, over just the positions
that the sequence has filled.

With classifier-free guidance a sequence has two batch rows, conditional and unconditional. AudioCraft conditions the
unconditional row on zeros, whose cross-attention output is exactly zero (no biases). Here that row skips
cross-attention.
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
"""The tokens of one position of B sequences, [B][K]."""


@dataclass(frozen=True, slots=True)
class KVCacheRequest:
    """The sizes that determine the KV cache of one request.

    Attributes:
        rows: 1, or 2 with classifier-free guidance.
        positions: positions of the longest window.
        prompt_tokens: T5 tokens of the prompt.
    """

    rows: int
    positions: int
    prompt_tokens: int


@dataclass(slots=True)
class SequenceState:
    """The decoder's state of one request in its current window.

    Attributes:
        rows: 1, or 2 with classifier-free guidance; the first is the conditional row.
        kv_cache: keys and values of self-attention.
        prompt: the projected prompt [L, dim].
        cross_kv: keys and values of the prompt for each layer, [1, H, L, D]; empty if the prompt is prepended or the C
            kernel stores them.
    """

    rows: int
    kv_cache: KVCache | PagedKVCache
    prompt: Tensor
    cross_kv: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class _Span:
    """The rows of one sequence in the flat batch, [begin, end): `positions` of them for each row of the sequence."""

    sequence: SequenceState
    begin: int
    end: int
    positions: int

    @property
    def cond_rows(self) -> range:
        """The conditional rows."""
        return range(self.begin, self.begin + self.positions)


class Decoder(ABC):
    """Runs the language model for a batch of sequences. All methods are called from one thread.

    Attributes:
        shape: the shape of the model.
        precision: the precision of the model.
    """

    def __init__(self, shape: LMShape, precision: Precision, embeddings: Tensor) -> None:
        self.shape, self.precision = shape, precision
        self._embeddings, self._device = embeddings, embeddings.device
        self._wavelengths = wavelengths(shape.dim, self._device)
        self._offsets = torch.arange(shape.codebooks, device=self._device)[:, None] * (shape.codebook_size + 1)

    @abstractmethod
    def open_sequence(self, prompt: Tensor, guided: bool, max_positions: int) -> SequenceState:
        """Create the state of a sequence.

        Args:
            prompt: the projected prompt [L, dim].
            guided: whether classifier-free guidance needs the unconditional row.
            max_positions: maximum number of positions of a window.
        """

    @abstractmethod
    def close_sequence(self, sequence: SequenceState) -> None:
        """Free the state of a sequence."""

    @abstractmethod
    def prefill(self, sequence: SequenceState, inputs: Tensor) -> None:
        """Read positions whose inputs [rows, T, dim] are known, and store their keys and values."""

    @abstractmethod
    def step(self, sequences: list[SequenceState], tokens: Tensor, cfg_coef: Tensor) -> Tensor:
        """Compute the logits of the next position of B sequences.

        Args:
            sequences: the B sequences.
            tokens: the tokens that they read, [B, K].
            cfg_coef: guidance coefficients [B]; ignored for sequences of one row.

        Returns:
            Logits of the next position [B, K, codebook_size], float32, with guidance applied.
        """

    def kv_cache_bytes(self, requests: list[KVCacheRequest]) -> int:
        """The bytes of the KV caches of such requests, when the last of them is added."""
        return sum(
            request_kv_bytes(self.shape, self.precision, request.rows, request.positions, request.prompt_tokens)
            for request in requests
        )

    def prompt_prefix(self, sequence: SequenceState) -> Tensor:
        """The inputs before the tokens of each window, [rows, L, dim]: the prompt if the model prepends it."""
        if self.shape.text_conditioning != "prepend":
            return sequence.prompt.new_empty(sequence.rows, 0, self.shape.dim)
        uncond = torch.zeros_like(sequence.prompt)
        return torch.stack([sequence.prompt, uncond][: sequence.rows])

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens [K, T] → [T, dim]: the sum of the codebooks' embeddings."""
        return self._embeddings.flatten(0, 1)[tokens + self._offsets].sum(dim=0)

    @torch.inference_mode()
    def step_and_sample(
        self,
        sequences: list[SequenceState],
        tokens: TokenColumns,
        cfg_coef: Tensor,
        sampling: SamplingParams,
        noise_steps: list[int],
    ) -> TokenColumns:
        """Sample the next tokens of B sequences.

        Tokens are lists, not tensors. A step evicts everything else from the processor's caches, so a torch call for a
        few numbers takes a tenth of a millisecond.

        Args:
            sequences: the B sequences.
            tokens: the tokens that they read, [B][K].
            cfg_coef: guidance coefficients [B]; ignored for sequences of one row.
            sampling: the sampling parameters of the B sequences.
            noise_steps: counters that key the sampling noise of the position, [B].

        Returns:
            Tokens [B][K]. If the logits of a sequence are not finite, some of its tokens are -1.
        """
        logits = self.step(sequences, torch.tensor(tokens, device=self._device), cfg_coef)
        sampled = sample(logits, sampling, torch.tensor(noise_steps, device=self._device))
        columns: TokenColumns = mark_nonfinite(logits, sampled).tolist()
        return columns

    def position_embeddings(self, positions: Tensor) -> Tensor:
        """The embeddings [N, dim] of positions [N]."""
        return sinusoidal_embeddings(positions, self._wavelengths)


class EagerDecoder(Decoder):
    """The decoder in torch, operator by operator."""

    def __init__(self, weights: LMWeights) -> None:
        super().__init__(weights.shape, weights.precision, weights.embeddings)
        self.weights = weights

    def open_sequence(self, prompt: Tensor, guided: bool, max_positions: int) -> SequenceState:
        """Create the KV cache of a sequence, and the keys and values of its prompt."""
        shape, weights = self.shape, self.weights
        rows = 2 if guided else 1
        prefix = len(prompt) if shape.text_conditioning == "prepend" else 0
        kv_cache = create_kv_cache(shape, weights.precision, weights.device, rows, prefix + max_positions)
        cross_kv = [self._cross_keys_values(layer.cross, prompt) for layer in weights.layers if layer.cross is not None]
        return SequenceState(rows, kv_cache, prompt, cross_kv)

    def close_sequence(self, sequence: SequenceState) -> None:
        """Do nothing: the state is freed with its last reference."""

    @torch.inference_mode()
    def prefill(self, sequence: SequenceState, inputs: Tensor) -> None:
        """Read positions whose inputs [rows, T, dim] are known; see `Decoder.prefill`."""
        positions = inputs.shape[1]
        span = _Span(sequence, 0, sequence.rows * positions, positions)
        self._forward(inputs.reshape(-1, self.shape.dim), [span])

    @torch.inference_mode()
    def step(self, sequences: list[SequenceState], tokens: Tensor, cfg_coef: Tensor) -> Tensor:
        """Compute guided logits [B, K, codebook_size]; see `Decoder.step`."""
        counts = [sequence.rows for sequence in sequences]
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        spans = [_Span(s, end - s.rows, end, 1) for s, end in zip(sequences, ends, strict=True)]
        x = self.embed(tokens.T).repeat_interleave(torch.tensor(counts, device=tokens.device), dim=0)
        x = self.weights.out_norm(self._forward(x, spans))
        logits = self.weights.output_heads(x).float().view(len(x), self.shape.codebooks, self.shape.codebook_size)
        cond = logits[[span.begin for span in spans]]
        uncond = logits[[span.end - 1 for span in spans]]
        return uncond + (cond - uncond) * cfg_coef[:, None, None]  # without guidance both are the same row: cond + 0

    def _forward(self, x: Tensor, spans: list[_Span]) -> Tensor:
        """Run flat rows [R, dim], at the next positions of their caches, through all layers."""
        x = x + self._next_position_embeddings(spans).to(x.dtype)
        cond_rows = torch.tensor([row for span in spans for row in span.cond_rows], device=x.device)
        for index, layer in enumerate(self.weights.layers):
            x += layer.out(self._self_attention(index, layer, x, spans))
            if layer.cross is not None:
                x.index_add_(0, cond_rows, self._cross_attention(index, layer.cross, x[cond_rows], spans))
            x += layer.linear2(F.gelu(layer.linear1(layer.norm2(x))))
        for span in spans:
            span.sequence.kv_cache.advance(span.positions)
        return x

    def _next_position_embeddings(self, spans: list[_Span]) -> Tensor:
        """The position embeddings of all rows, [R, dim]."""
        positions: list[int] = []
        for span in spans:
            begin = span.sequence.kv_cache.length
            positions += list(range(begin, begin + span.positions)) * span.sequence.rows
        return self.position_embeddings(torch.tensor(positions, device=self._device))

    def _self_attention(self, index: int, layer: LayerWeights, x: Tensor, spans: list[_Span]) -> Tensor:
        """Self-attention of rows [R, dim] → [R, dim], before the output matrix."""
        shape = self.shape
        packed = layer.query_key_value(layer.norm1(x))
        outputs = []
        for span in spans:
            rows, positions = span.sequence.rows, span.positions
            parts = packed[span.begin : span.end].view(rows, positions, 3, shape.heads, shape.head_dim)
            parts = parts.permute(2, 0, 3, 1, 4)  # [3, rows, H, T, D]
            kv_cache = span.sequence.kv_cache
            assert not isinstance(kv_cache, PagedKVCache)  # only the C kernel uses it
            attn_out = kv_cache.attend(index, parts[0], parts[1:])
            outputs.append(attn_out.transpose(1, 2).reshape(rows * positions, shape.dim))
        return _concatenate_rows(outputs)

    def _cross_attention(self, index: int, cross: CrossAttentionWeights, x: Tensor, spans: list[_Span]) -> Tensor:
        """Cross-attention of the conditional rows [R', dim] to their prompts → [R', dim]."""
        shape = self.shape
        queries = cross.query(cross.norm(x))
        outputs = []
        for span, rows in zip(spans, torch.split(queries, [span.positions for span in spans]), strict=True):
            query = rows.view(1, span.positions, shape.heads, shape.head_dim).transpose(1, 2)
            attn_out = F.scaled_dot_product_attention(query, *span.sequence.cross_kv[index])
            outputs.append(attn_out.transpose(1, 2).reshape(span.positions, shape.dim))
        return cross.out(_concatenate_rows(outputs))

    def _cross_keys_values(self, cross: CrossAttentionWeights, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a prompt [L, dim] in one layer, [1, H, L, D] each."""
        shape = self.shape
        packed = cross.key_value(prompt).view(1, len(prompt), 2, shape.heads, shape.head_dim)
        keys, values = packed.permute(2, 0, 3, 1, 4)
        return keys.contiguous(), values.contiguous()


def mark_nonfinite(logits: Tensor, tokens: Tensor) -> Tensor:
    """Replace tokens [B, K] by -1 in sequences whose logits [B, K, codebook_size] are not finite."""
    nonfinite = ~logits.isfinite().flatten(1).all(dim=1)
    return tokens.masked_fill(nonfinite[:, None], -1)


def _concatenate_rows(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]
