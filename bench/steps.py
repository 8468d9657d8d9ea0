"""A step of the language model: how any contestant is timed, and ours.

A step is the forward pass of guided clips, two rows each, from tokens to guided logits. Sampling, the codec and the
prompt are in nobody's step; but on a GPU our sampling is a part of our graph.
"""

from __future__ import annotations

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
from musicgen_bento.lm.kv_cache.paged import PagedKVCache
from musicgen_bento.lm.sampling import SamplingParams
from musicgen_bento.lm.weights import LMShape, LMWeights
from musicgen_bento.precision import Precision

PROMPT = 16  # T5 tokens
CFG_COEF = 3.0
MOST_CLIPS = 64  # on a GPU; on a CPU 16
WARM, MOST, SECONDS = 3, 30, 3.0  # steps before the clock runs; steps a cell; seconds a cell, once three are done


class Contestant(Protocol):
    """A language model that makes steps.

    Attributes:
        shape: its sizes.
        device: where it is.
    """

    shape: LMShape
    device: torch.device

    def begin(self, batch: int, position: int, text: Tensor) -> None:
        """Have a cache of `position` positions for each of `batch` clips, with values made up.

        Args:
            batch: clips, two rows each.
            position: positions before the first step.
            text: the projected prompt [L, dim], float32, the same for all.
        """

    def step(self, tokens: Tensor) -> Tensor:
        """Tokens [B, K] at the next position → guided logits [B, K, card]."""

    def end(self) -> None:
        """Give the cache back."""


def prompt(shape: LMShape) -> Tensor:
    """A projected prompt [L, dim]."""
    return torch.randn(PROMPT, shape.dim, generator=torch.Generator().manual_seed(0))


def measure(contestant: Contestant, batch: int, position: int) -> list[float]:
    """Milliseconds of a few steps."""
    shape, device = contestant.shape, contestant.device
    tokens = torch.randint(
        shape.codebook_size, (batch, shape.codebooks), generator=torch.Generator().manual_seed(1)
    ).to(device)
    found: list[float] = []
    try:
        contestant.begin(batch, position, prompt(shape).to(device))
        for _ in range(WARM):
            contestant.step(tokens)
        while len(found) < MOST and (len(found) < 3 or sum(found) < 1000 * SECONDS):
            synchronize(device)
            began = time.perf_counter()
            contestant.step(tokens)
            synchronize(device)
            found.append(1000 * (time.perf_counter() - began))
    finally:
        contestant.end()
    return found


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Ours:
    """This project's engine, its language model alone.

    Attributes:
        decoder: its own.
    """

    def __init__(self, weights: Weights) -> None:
        self._rest = weights.precision.compute_dtype
        self.decoder = self._make(weights)
        self._sequences: list[SequenceState] = []
        self.shape, self.device = weights.shape, weights.device
        torch.set_num_threads(weights.shape.num_threads())  # as the engine does

    def _make(self, weights: Weights) -> Decoder:
        return create_decoder(weights, MOST_CLIPS, deterministic=True)

    @torch.inference_mode()
    def begin(self, batch: int, position: int, text: Tensor) -> None:
        """See `Contestant`."""
        shape, room = self.shape, position + WARM + MOST
        self._guidance = torch.full((batch,), CFG_COEF, device=self.device)
        for _ in range(batch):
            self._sequences.append(self.decoder.open(text.to(self._rest), guided=True, positions=room))
        if isinstance(self.decoder, CpuDecoder):
            for sequence in self._sequences:
                assert isinstance(sequence.cache, PagedKVCache)
                sequence.cache.fill_with_zeros_for_benchmark(position)
            return
        past = torch.randn(2, 2, shape.heads, 1, shape.head_dim, device=self.device, dtype=self._rest)
        for sequence in self._sequences if position else ():
            for layer in range(shape.layers):
                sequence.cache.append(layer, past.expand(-1, -1, -1, position, -1))
            sequence.cache.advance(position)

    def step(self, tokens: Tensor) -> Tensor:
        """See `Contestant`."""
        return self.decoder.step(self._sequences, tokens, self._guidance)

    def end(self) -> None:
        """See `Contestant`."""
        while self._sequences:
            self.decoder.close(self._sequences.pop())


class OursGraphed(Ours):
    """The same as it runs on a GPU. Its step draws too, and gives tokens [B, K]."""

    def _make(self, weights: Weights) -> Decoder:
        assert isinstance(weights, LMWeights)
        return CudaGraphDecoder(weights)

    def begin(self, batch: int, position: int, text: Tensor) -> None:
        """See `Contestant`."""
        super().begin(batch, position, text)
        self._rows = SamplingParams.from_lists([0] * batch, [1.0] * batch, [250] * batch, [0.0] * batch, self.device)
        self._keys = list(range(batch))

    def step(self, tokens: Tensor) -> Tensor:
        """See `Contestant`."""
        read = tokens.tolist()
        return torch.tensor(self.decoder.step_and_sample(self._sequences, read, self._guidance, self._rows, self._keys))


def load_ours(source: Source, precision: Precision, device: torch.device) -> Ours:
    """From files, without T5 and the codec."""
    files = loading.open_files(source)
    return ours(loading.load_weights(files, device, precision))


def ours(weights: Weights) -> Ours:
    """As the engine runs them on their device."""
    return (OursGraphed if weights.device.type == "cuda" else Ours)(weights)
