"""The decoder on the C kernel: one position of all sequences is one call.

Rows do not depend on each other, and every sum is computed in one order, so the logits are batch-invariant.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.lm.decoder import Decoder, SequenceState, TokenColumns
from musicgen_bento.lm.kv_cache.paged import BlockPool, PagedKVCache, block_bytes, can_fuse_prompt, num_blocks
from musicgen_bento.lm.packed_weights import PackedWeights
from musicgen_bento.lm.sampling import SamplingParams
from musicgen_bento.model_catalog import MAX_PROMPT_TOKENS
from musicgen_bento.native import bindings
from musicgen_bento.native.bindings import LANES, round_up

PREFILL_ROWS = 32  # rows of one prefill call, or more if a step may have more
PHASES = ("wakeup", "norms", "products", "kv_write", "attention", "sampling", "waiting")
"""The phases that the kernel counts the time of, in its order (decoder.c)."""

_BatchRow = tuple[int, int, int, int, int]  # the fields of `bindings.BatchRow`


@dataclass(frozen=True, slots=True)
class _BatchSteps:
    """The C structures of one batch, which are reused until the batch changes."""

    sequences: list[SequenceState]
    sampling: SamplingParams
    cfg_coef: Tensor
    steps: Any  # bindings.SequenceStep * B


class CpuDecoder(Decoder):
    """The decoder on the C kernel; KV caches are in blocks of one pool.

    Args:
        weights: the packed weights of the model.
        max_batch_size: maximum number of sequences at once. Their caches take memory only as they are filled.
        threads: the thread pool that runs the steps.

    Raises:
        MemoryError: there is no memory for it.
    """

    def __init__(self, weights: PackedWeights, max_batch_size: int, threads: bindings.ThreadPool) -> None:
        super().__init__(weights.shape, weights.precision, weights.embeddings)
        self._weights, self._threads, shape = weights, threads, weights.shape
        self._library = bindings.library()
        self._max_rows = max(2 * max_batch_size, PREFILL_ROWS)
        self._handle = self._library.decoder_open(ctypes.byref(weights.model), self._max_rows, threads.handle)
        if self._handle is None:
            raise MemoryError("No memory for the decoder.")
        self._pos_embeddings = weights.pos_embeddings
        self._max_positions = len(weights.pos_embeddings)
        prompt_blocks = num_blocks(MAX_PROMPT_TOKENS) if shape.text_conditioning == "cross" else 0
        blocks_per_sequence = 2 * num_blocks(self._max_positions) + prompt_blocks
        self._blocks = BlockPool(max_batch_size * blocks_per_sequence, block_bytes(shape, weights.precision))
        self._free_sequences = max_batch_size
        self._batch: _BatchSteps | None = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._library.decoder_close(self._handle)

    # ---- sequences

    def open_sequence(self, prompt: Tensor, guided: bool, max_positions: int) -> SequenceState:
        """Create the KV cache of a sequence, and store or fuse its prompt.

        Raises:
            IndexError: there are `max_batch_size` sequences already.
            MemoryError: there is no memory for the prompt.
        """
        if not self._free_sequences:
            raise IndexError("The batch is full.")
        rows, prompt = 2 if guided else 1, prompt.contiguous()
        tokens = len(prompt) if self.shape.text_conditioning == "cross" else 0
        fuse = can_fuse_prompt(self.precision, tokens)
        cache = PagedKVCache(self._blocks, rows, self._max_positions, 0 if fuse else tokens)
        if fuse:
            cache.allocate_fused_prompt(tokens, self._library.decoder_fused_prompt_bytes(self._handle, tokens))
            if not self._library.decoder_fuse_prompt(self._handle, prompt.data_ptr(), tokens, cache.fused_prompt):
                raise MemoryError("No memory to fuse the prompt.")
        elif tokens:
            self._library.decoder_prefill_cross_kv(
                self._handle, prompt.data_ptr(), tokens, cache.prompt_blocks.data_ptr()
            )
        self._free_sequences -= 1
        return SequenceState(rows, cache, prompt, [])

    def close_sequence(self, sequence: SequenceState) -> None:
        """Free the blocks of a sequence."""
        self._free_sequences += 1
        self._batch = None
        _paged_cache(sequence).close()

    # ---- calls

    @torch.inference_mode()
    def prefill(self, sequence: SequenceState, inputs: Tensor) -> None:
        """Read positions whose inputs [rows, T, dim] are known; see `Decoder.prefill`."""
        cache = _paged_cache(sequence)
        for chunk in torch.split(inputs, self._max_rows // sequence.rows, dim=1):
            begin, positions = cache.length, chunk.shape[1]
            x = chunk + self._pos_embeddings[begin : begin + positions]
            cache.ensure_capacity(positions)
            rows = [row for position in range(begin, begin + positions) for row in _batch_rows(cache, position)]
            self._forward(rows, x.transpose(0, 1).flatten(0, 1), None)
            cache.advance(positions)

    @torch.inference_mode()
    def step(self, sequences: list[SequenceState], tokens: Tensor, cfg_coef: Tensor) -> Tensor:
        """Compute guided logits [B, K, codebook_size]; see `Decoder.step`."""
        shape, caches = self.shape, [_paged_cache(sequence) for sequence in sequences]
        rows: list[_BatchRow] = []
        cond_rows, uncond_rows, sequence_of_row = [], [], []
        for index, cache in enumerate(caches):
            cache.ensure_capacity(1)
            cond_rows.append(len(rows))
            rows += _batch_rows(cache, cache.length)
            uncond_rows.append(len(rows) - 1)
            sequence_of_row += [index] * len(cache.block_tables)
        x = self.embed(tokens.T) + self._pos_embeddings[[cache.length for cache in caches]]
        logits = torch.empty(len(rows), round_up(shape.codebooks * shape.codebook_size, LANES))
        self._forward(rows, x[sequence_of_row], logits)
        for cache in caches:
            cache.advance(1)
        logits = logits[:, : shape.codebooks * shape.codebook_size].view(-1, shape.codebooks, shape.codebook_size)
        uncond = logits[uncond_rows]
        # Without guidance both are the same row: cond + 0.
        return uncond + (logits[cond_rows] - uncond) * cfg_coef[:, None, None]

    def step_and_sample(
        self,
        sequences: list[SequenceState],
        tokens: TokenColumns,
        cfg_coef: Tensor,
        sampling: SamplingParams,
        noise_steps: list[int],
    ) -> TokenColumns:
        """Sample the next tokens in the kernel; see `Decoder.step_and_sample`."""
        steps = self._sequence_steps(sequences, cfg_coef, sampling)
        caches = [_paged_cache(sequence) for sequence in sequences]
        for step, cache, noise_step in zip(steps, caches, noise_steps, strict=True):
            cache.ensure_capacity(1)
            step.position, step.noise_step = cache.length, noise_step
        int64_array = ctypes.c_int64 * (len(steps) * self.shape.codebooks)
        inputs, sampled = int64_array(*(token for column in tokens for token in column)), int64_array()
        self._library.decoder_step(self._handle, steps, len(steps), inputs, sampled)
        for cache in caches:
            cache.advance(1)
        codebooks = self.shape.codebooks
        return [sampled[begin : begin + codebooks] for begin in range(0, len(sampled), codebooks)]

    def _sequence_steps(self, sequences: list[SequenceState], cfg_coef: Tensor, sampling: SamplingParams) -> Any:
        """The C structures of a batch, `bindings.SequenceStep` [B]; created when the batch or a parameter changes."""
        batch = self._batch
        if (
            batch is None
            or batch.sequences != sequences
            or batch.sampling is not sampling
            or batch.cfg_coef is not cfg_coef
        ):
            steps = _create_steps(sequences, cfg_coef, sampling)
            self._batch = batch = _BatchSteps(list(sequences), sampling, cfg_coef, steps)
        return batch.steps

    def _forward(self, rows: list[_BatchRow], x: Tensor, logits: Tensor | None) -> None:
        """Run rows with inputs x [R, dim], and write their logits if a tensor for them is passed."""
        table, x = torch.tensor(rows, dtype=torch.int64), x.contiguous()
        logits_address = None if logits is None else logits.data_ptr()
        self._library.decoder_forward(self._handle, table.data_ptr(), len(rows), x.data_ptr(), logits_address)

    def phase_times(self) -> dict[str, float]:
        """The milliseconds of the calls since the last reading, by phase; reading resets them."""
        nanoseconds = torch.zeros(len(PHASES), dtype=torch.int64)
        self._library.decoder_phase_times(self._handle, nanoseconds.data_ptr())
        return {phase: int(time) / 1e6 for phase, time in zip(PHASES, nanoseconds, strict=True)}


def _create_steps(sequences: list[SequenceState], cfg_coef: Tensor, sampling: SamplingParams) -> Any:
    """Create `bindings.SequenceStep` [B], without the fields that each step sets."""
    steps = (bindings.SequenceStep * len(sequences))()
    columns = sampling.seeds, sampling.top_k, sampling.temperature, sampling.top_p, cfg_coef
    parameters = zip(*(column.tolist() for column in columns), strict=True)
    for step, sequence, (seed, top_k, temperature, top_p, cfg) in zip(steps, sequences, parameters, strict=True):
        cache = _paged_cache(sequence)
        for row, table in enumerate(cache.block_tables):
            step.self_kv[row] = table.data_ptr()
        step.cross_kv, step.fused_prompt = _prompt_addresses(cache)
        step.prompt_tokens, step.seed, step.top_k = cache.prompt_tokens, seed, top_k
        step.temperature, step.top_p, step.cfg_coef = temperature, top_p, cfg
    return steps


def _paged_cache(sequence: SequenceState) -> PagedKVCache:
    assert isinstance(sequence.kv_cache, PagedKVCache)
    return sequence.kv_cache


def _prompt_addresses(cache: PagedKVCache) -> tuple[int, int]:
    """The addresses of the prompt's block table and of the fused prompt; 0 where there is none."""
    return (cache.prompt_blocks.data_ptr() if len(cache.prompt_blocks) else 0), cache.fused_prompt


def _batch_rows(cache: PagedKVCache, position: int) -> list[_BatchRow]:
    """The rows of a sequence at a position, the conditional one first."""
    prompt = _prompt_addresses(cache)
    return [
        (table.data_ptr(), *(prompt if row == 0 else (0, 0)), position, cache.prompt_tokens)
        for row, table in enumerate(cache.block_tables)
    ]
