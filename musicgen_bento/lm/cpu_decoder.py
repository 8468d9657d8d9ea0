"""The decoder on a CPU: one position of all clips is one call of the kernel.

No row sees another, and every sum is made in one order: a clip's logits are the same in any company.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.lm.decoder import Decoder, SequenceState, TokenColumns
from musicgen_bento.lm.kv_cache.paged import BlockPool, PagedKVCache, block_bytes, can_fuse_prompt, num_blocks
from musicgen_bento.lm.packed_weights import PackedWeights
from musicgen_bento.lm.sampling import SamplingParams
from musicgen_bento.lm.weights import MAX_PROMPT_TOKENS
from musicgen_bento.native import bindings

PREFILL = 32  # rows at once
PHASES = ("waking", "norms", "products", "keeping", "attention", "sampling", "waiting")
"""What a step's time goes to, as the kernel counts it."""

_Row = tuple[int, int, int, int, int]  # as `Row` in decoder.c


class CpuDecoder(Decoder):
    """See `Decoder`.

    Args:
        weights: of the model.
        seats: most clips at once. They take memory as they are filled.
        team: whose threads make the steps.

    Raises:
        MemoryError: there is none for it.
    """

    def __init__(self, weights: PackedWeights, seats: int, team: bindings.ThreadPool) -> None:
        super().__init__(weights.shape, weights.precision, weights.embeddings)
        self._weights, self._team, shape = weights, team, weights.shape
        self._kernel = bindings.library()
        self._most = max(2 * seats, PREFILL)
        self._handle = self._kernel.decoder_open(ctypes.byref(weights.model), self._most, team.handle)
        if self._handle is None:
            raise MemoryError("a decoder")
        cross = shape.text_conditioning == "cross"
        self._places = weights.pos_embeddings
        self._positions = len(weights.pos_embeddings)
        each = 2 * num_blocks(self._positions) + (num_blocks(MAX_PROMPT_TOKENS) if cross else 0)
        self._blocks = BlockPool(seats * each, block_bytes(shape, weights.precision))
        self._free = seats
        self._company: tuple[list[SequenceState], SamplingParams, Tensor, Any] | None = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._kernel.decoder_close(self._handle)

    # ---- clips

    def open(self, text: Tensor, guided: bool, positions: int) -> SequenceState:
        """See `Decoder.open`.

        Raises:
            IndexError: there are as many as there may be.
            MemoryError: there is none for the prompt.
        """
        if not self._free:
            raise IndexError("no seat is free")
        rows, text = 2 if guided else 1, text.contiguous()
        tokens = len(text) if self.shape.text_conditioning == "cross" else 0
        folded = can_fuse_prompt(self.precision, tokens)
        cache = PagedKVCache(self._blocks, rows, self._positions, 0 if folded else tokens)
        if folded:
            cache.allocate_fused_prompt(tokens, self._kernel.decoder_fused_prompt_bytes(self._handle, tokens))
            if not self._kernel.decoder_fuse_prompt(self._handle, text.data_ptr(), tokens, cache.fused_prompt):
                raise MemoryError("a prompt")
        elif tokens:
            self._kernel.decoder_prefill_cross_kv(self._handle, text.data_ptr(), tokens, cache.prompt_blocks.data_ptr())
        self._free -= 1
        return SequenceState(rows, cache, text, [])

    def close(self, sequence: SequenceState) -> None:
        """See `Decoder.close`."""
        self._free += 1
        self._company = None
        _cache(sequence).close()

    # ---- calls

    @torch.inference_mode()
    def prefill(self, sequence: SequenceState, inputs: Tensor) -> None:
        """See `Decoder.prefill`."""
        cache = _cache(sequence)
        for some in torch.split(inputs, self._most // sequence.rows, dim=1):
            begin, positions = cache.length, some.shape[1]
            x = some + self._places[begin : begin + positions]
            cache.ensure_capacity(positions)
            rows = [row for at in range(begin, begin + positions) for row in _rows(cache, at)]
            self._forward(rows, x.transpose(0, 1).flatten(0, 1), None)
            cache.advance(positions)

    @torch.inference_mode()
    def step(self, sequences: list[SequenceState], tokens: Tensor, cfg_coef: Tensor) -> Tensor:
        """See `Decoder.step`."""
        shape, caches = self.shape, [_cache(sequence) for sequence in sequences]
        rows: list[_Row] = []
        hearing, deaf, whose = [], [], []
        for index, cache in enumerate(caches):
            cache.ensure_capacity(1)
            hearing.append(len(rows))
            rows += _rows(cache, cache.length)
            deaf.append(len(rows) - 1)
            whose += [index] * len(cache.block_tables)
        x = self.embed(tokens.T) + self._places[[cache.length for cache in caches]]
        logits = torch.empty(len(rows), bindings.round_up(shape.codebooks * shape.codebook_size, bindings.LANES))
        self._forward(rows, x[whose], logits)
        for cache in caches:
            cache.advance(1)
        logits = logits[:, : shape.codebooks * shape.codebook_size].view(-1, shape.codebooks, shape.codebook_size)
        unheard = logits[deaf]
        return unheard + (logits[hearing] - unheard) * cfg_coef[:, None, None]  # of one row: hearing + 0

    def step_and_sample(
        self,
        sequences: list[SequenceState],
        tokens: TokenColumns,
        cfg_coef: Tensor,
        rows: SamplingParams,
        keys: list[int],
    ) -> TokenColumns:
        """See `Decoder.draw`."""
        clips, caches = self._clips(sequences, cfg_coef, rows), [_cache(sequence) for sequence in sequences]
        for clip, cache, key in zip(clips, caches, keys, strict=True):
            cache.ensure_capacity(1)
            clip.position, clip.noise_step = cache.length, key
        numbers = ctypes.c_int64 * (len(clips) * self.shape.codebooks)
        read, drawn = numbers(*(token for column in tokens for token in column)), numbers()
        self._kernel.decoder_step(self._handle, clips, len(clips), read, drawn)
        for cache in caches:
            cache.advance(1)
        return [drawn[at : at + self.shape.codebooks] for at in range(0, len(drawn), self.shape.codebooks)]

    def _clips(self, sequences: list[SequenceState], cfg_coef: Tensor, rows: SamplingParams) -> Any:
        """As the kernel has them, made anew only when the company changes."""
        known = self._company
        if known is None or known[0] != sequences or known[1] is not rows or known[2] is not cfg_coef:
            clips = (bindings.SequenceStep * len(sequences))()
            parameters = zip(
                *(each.tolist() for each in (rows.seeds, rows.top_k, rows.temperature, rows.top_p, cfg_coef)),
                strict=True,
            )
            for clip, sequence, (seed, top_k, temperature, top_p, cfg) in zip(
                clips, sequences, parameters, strict=True
            ):
                cache = _cache(sequence)
                for index, own in enumerate(cache.block_tables):
                    clip.self_kv[index] = own.data_ptr()
                clip.cross_kv, clip.fused_prompt = _prompt(cache)
                clip.prompt_tokens, clip.seed, clip.top_k = cache.tokens, seed, top_k
                clip.temperature, clip.top_p, clip.cfg_coef = temperature, top_p, cfg
            self._company = known = (list(sequences), rows, cfg_coef, clips)
        return known[3]

    def _forward(self, rows: list[_Row], x: Tensor, logits: Tensor | None) -> None:
        """The rows' inputs [R, dim] → their logits, where they are wanted."""
        table, x = torch.tensor(rows, dtype=torch.int64), x.contiguous()
        to = None if logits is None else logits.data_ptr()
        self._kernel.decoder_forward(self._handle, table.data_ptr(), len(rows), x.data_ptr(), to)

    def phase_times(self) -> dict[str, float]:
        """Milliseconds that calls have taken since they were asked for last, by what for."""
        found = torch.zeros(len(PHASES), dtype=torch.int64)
        self._kernel.decoder_phase_times(self._handle, found.data_ptr())
        return {name: int(spent) / 1e6 for name, spent in zip(PHASES, found, strict=True)}


def _cache(sequence: SequenceState) -> PagedKVCache:
    assert isinstance(sequence.cache, PagedKVCache)
    return sequence.cache


def _prompt(cache: PagedKVCache) -> tuple[int, int]:
    """Where the blocks of a clip's prompt are, and where it is folded; 0 where they are not."""
    return (cache.prompt_blocks.data_ptr() if len(cache.prompt_blocks) else 0), cache.fused_prompt


def _rows(cache: PagedKVCache, position: int) -> list[_Row]:
    """A clip's rows at a position, the first of which hears the prompt."""
    prompt = _prompt(cache)
    return [
        (own.data_ptr(), *(prompt if index == 0 else (0, 0)), position, cache.tokens)
        for index, own in enumerate(cache.block_tables)
    ]
