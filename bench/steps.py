"""Steps of the language model: the interface of a backend, how a step is timed, and this project's backend.

A step is the forward pass of guided clips, two rows each, from tokens to guided logits. Sampling, the codec and the
prompt are not part of it, except that this project's CUDA graph includes sampling.
"""

from __future__ import annotations

import ctypes
import time
from typing import Protocol

import torch
from torch import Tensor

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.cuda_graph_decoder import CudaGraphDecoder
from musicgen_bento.lm.decoder import Decoder, SequenceState
from musicgen_bento.lm.factory import Weights, create_decoder
from musicgen_bento.lm.kv_cache.paged import PagedKVCache, block_bytes
from musicgen_bento.lm.sampling import SamplingParams
from musicgen_bento.lm.weights import LMShape, LMWeights
from musicgen_bento.precision import Precision

PROMPT_TOKENS = 16
CFG_COEF = 3.0
MAX_CLIPS = 64  # the largest batch on a GPU; 16 on a CPU
WARMUP_STEPS = 3
MAX_STEPS = 30  # timed steps of one case
MAX_SECONDS = 3.0  # timed seconds of one case, once three steps are timed


class Backend(Protocol):
    """A language model that runs steps.

    Attributes:
        shape: sizes of the model.
        device: device of the weights.
    """

    shape: LMShape
    device: torch.device

    def begin(self, batch: int, position: int, prompt: Tensor) -> None:
        """Fill the cache of each clip with `position` synthetic positions.

        Args:
            batch: number of clips, two rows each.
            position: number of positions before the first step.
            prompt: the projected prompt [L, dim], float32, the same for all clips.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Run one step: tokens [B, K] → guided logits [B, K, codebook_size]."""

    def end(self) -> None:
        """Free the cache."""


def random_prompt(shape: LMShape) -> Tensor:
    """Return a projected prompt [L, dim] of random numbers."""
    return torch.randn(PROMPT_TOKENS, shape.dim, generator=torch.Generator().manual_seed(0))


def measure_steps(backend: Backend, batch: int, position: int) -> list[float]:
    """Return the milliseconds of a few steps after the warm-up."""
    shape, device = backend.shape, backend.device
    tokens = torch.randint(
        shape.codebook_size, (batch, shape.codebooks), generator=torch.Generator().manual_seed(1)
    ).to(device)
    times: list[float] = []
    try:
        backend.begin(batch, position, random_prompt(shape).to(device))
        for _ in range(WARMUP_STEPS):
            backend.step(tokens)
        while len(times) < MAX_STEPS and (len(times) < 3 or sum(times) < 1000 * MAX_SECONDS):
            synchronize(device)
            started = time.perf_counter()
            backend.step(tokens)
            synchronize(device)
            times.append(1000 * (time.perf_counter() - started))
    finally:
        backend.end()
    return times


def synchronize(device: torch.device) -> None:
    """Wait for the kernels of a GPU; do nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class EngineBackend:
    """The decoder of this project's engine, without the engine.

    Attributes:
        decoder: the decoder under test.
    """

    def __init__(self, weights: Weights) -> None:
        self._dtype = weights.precision.compute_dtype
        self.decoder = self._create_decoder(weights)
        self._sequences: list[SequenceState] = []
        self.shape, self.device = weights.shape, weights.device
        torch.set_num_threads(weights.shape.num_threads())  # as the engine does

    def _create_decoder(self, weights: Weights) -> Decoder:
        return create_decoder(weights, MAX_CLIPS, deterministic=True)

    @torch.inference_mode()
    def begin(self, batch: int, position: int, prompt: Tensor) -> None:
        """Open a sequence for each clip and fill its cache; see `Backend.begin`."""
        shape, capacity = self.shape, position + WARMUP_STEPS + MAX_STEPS
        self._cfg_coef = torch.full((batch,), CFG_COEF, device=self.device)
        for _ in range(batch):
            self._sequences.append(
                self.decoder.open_sequence(prompt.to(self._dtype), guided=True, max_positions=capacity)
            )
        if isinstance(self.decoder, CpuDecoder):
            for sequence in self._sequences:
                assert isinstance(sequence.kv_cache, PagedKVCache)
                _fill_with_zeros(sequence.kv_cache, position, block_bytes(shape, self.decoder.precision))
            return
        past = torch.randn(2, 2, shape.heads, 1, shape.head_dim, device=self.device, dtype=self._dtype)
        for sequence in self._sequences if position else ():
            for layer in range(shape.layers):
                sequence.kv_cache.append(layer, past.expand(-1, -1, -1, position, -1))
            sequence.kv_cache.advance(position)

    def step(self, tokens: Tensor) -> Tensor:
        """Run one step: tokens [B, K] → guided logits [B, K, codebook_size]."""
        return self.decoder.step(self._sequences, tokens, self._cfg_coef)

    def end(self) -> None:
        """Close all sequences."""
        while self._sequences:
            self.decoder.close_sequence(self._sequences.pop())


class CudaGraphBackend(EngineBackend):
    """The decoder that the engine uses on a GPU. Its step samples too and returns tokens [B, K]."""

    def _create_decoder(self, weights: Weights) -> Decoder:
        assert isinstance(weights, LMWeights)
        return CudaGraphDecoder(weights)

    def begin(self, batch: int, position: int, prompt: Tensor) -> None:
        """Open the sequences and set their sampling parameters; see `Backend.begin`."""
        super().begin(batch, position, prompt)
        self._sampling = SamplingParams.from_lists(
            [0] * batch, [1.0] * batch, [250] * batch, [0.0] * batch, self.device
        )
        self._noise_steps = list(range(batch))

    def step(self, tokens: Tensor) -> Tensor:
        """Run one step and sample: tokens [B, K] → next tokens [B, K]."""
        next_tokens = self.decoder.step_and_sample(
            self._sequences, tokens.tolist(), self._cfg_coef, self._sampling, self._noise_steps
        )
        return torch.tensor(next_tokens)


def _fill_with_zeros(cache: PagedKVCache, positions: int, num_bytes: int) -> None:
    """Store so many positions of zeros, in blocks of `num_bytes`; the blocks then take memory."""
    cache.ensure_capacity(positions)
    for address in cache.block_tables.flatten().tolist():
        if address:  # allocated
            ctypes.memset(address, 0, num_bytes)
    cache.advance(positions)


def load_engine_backend(source: Source, precision: Precision, device: torch.device) -> EngineBackend:
    """Load a model's language model, without T5 and the codec."""
    files = loading.open_files(source)
    return create_engine_backend(loading.load_weights(files, device, precision))


def create_engine_backend(weights: Weights) -> EngineBackend:
    """Return the backend with the decoder that the engine uses on the weights' device."""
    return (CudaGraphBackend if weights.device.type == "cuda" else EngineBackend)(weights)
