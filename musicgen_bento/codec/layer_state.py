"""The state of one stream that the codec's streaming layers keep between two chunks.

Weights belong to the layers and serve all streams; a state belongs to one stream. States of several streams can be
joined into one state, whose tensors have the streams along the batch dimension, and split again. This needs equal
signatures: equal tensor shapes and equal values of everything else. A stream's tensors have one batch row, or two if a
stereo codec decodes each channel in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from musicgen_bento.codec.torch_ops import LSTMState


class LayerState:
    """The state of a layer that keeps nothing, and the interface of all states."""

    __slots__ = ()

    @property
    def signature(self) -> tuple[Any, ...]:
        """What states must have in common to be joined."""
        return ()

    @classmethod
    def batch(cls, states: Sequence[Self]) -> Self:
        """Join the states of several streams; the tensors are copies."""
        return cls()

    def unbatch(self, count: int) -> list[Self]:
        """Split into the states of `count` streams; the tensors are copies."""
        return [type(self)() for _ in range(count)]


@dataclass(slots=True)
class Conv1dState(LayerState):
    """The state of a convolution.

    Attributes:
        past: the last inputs, which later outputs need too, [B, m, C]; None before the first input.
        started: whether the convolution has had enough inputs to pad the beginning.
    """

    past: Tensor | None = None
    started: bool = False

    @property
    def signature(self) -> tuple[Any, ...]:
        """Shape of the past, and whether outputs have begun."""
        return _shape(self.past), self.started

    @classmethod
    def batch(cls, states: Sequence[Self]) -> Self:
        """Join along the batch dimension, as copies."""
        return cls(_join([state.past for state in states]), states[0].started)

    def unbatch(self, count: int) -> list[Self]:
        """Split along the batch dimension, as copies."""
        return [type(self)(past, self.started) for past in _split(self.past, count)]


@dataclass(slots=True)
class ConvTranspose1dState(LayerState):
    """The state of a transposed convolution.

    Attributes:
        samples_to_skip: leading outputs that are still to be trimmed.
        overlap_tail: what the last input adds to the next stride, [B, stride, C]; None before the first input.
    """

    samples_to_skip: int
    overlap_tail: Tensor | None = None

    @property
    def signature(self) -> tuple[Any, ...]:
        """Outputs to skip, and shape of the tail."""
        return self.samples_to_skip, _shape(self.overlap_tail)

    @classmethod
    def batch(cls, states: Sequence[Self]) -> Self:
        """Join along the batch dimension, as copies."""
        return cls(states[0].samples_to_skip, _join([state.overlap_tail for state in states]))

    def unbatch(self, count: int) -> list[Self]:
        """Split along the batch dimension, as copies."""
        return [type(self)(self.samples_to_skip, tail) for tail in _split(self.overlap_tail, count)]


@dataclass(slots=True)
class StackedLSTMState(LayerState):
    """The state of an LSTM of several layers.

    Attributes:
        layers: hidden state and cell state of each layer; empty before the first input.
    """

    layers: list[LSTMState] = field(default_factory=list)

    @property
    def signature(self) -> tuple[Any, ...]:
        """Shapes of the hidden and cell states."""
        return tuple((hidden.shape, cell.shape) for hidden, cell in self.layers)

    @classmethod
    def batch(cls, states: Sequence[Self]) -> Self:
        """Join along the batch dimension, as copies."""
        layers = zip(*(state.layers for state in states), strict=True)
        return cls([(torch.cat([h for h, _ in layer]), torch.cat([c for _, c in layer])) for layer in layers])

    def unbatch(self, count: int) -> list[Self]:
        """Split along the batch dimension, as copies."""
        states = [type(self)() for _ in range(count)]
        for hidden, cell in self.layers:
            for state, h, c in zip(states, hidden.chunk(count), cell.chunk(count), strict=True):
                state.layers.append((h.clone(), c.clone()))
        return states


@dataclass(slots=True)
class SequentialState(LayerState):
    """The states of layers in sequence."""

    layers: list[LayerState]

    @property
    def signature(self) -> tuple[Any, ...]:
        """Signatures of the layers' states."""
        return tuple(layer.signature for layer in self.layers)

    @classmethod
    def batch(cls, states: Sequence[Self]) -> Self:
        """Join along the batch dimension, as copies."""
        by_layer = zip(*(state.layers for state in states), strict=True)
        return cls([type(layer_states[0]).batch(layer_states) for layer_states in by_layer])

    def unbatch(self, count: int) -> list[Self]:
        """Split along the batch dimension, as copies."""
        states = [type(self)([]) for _ in range(count)]
        for layer in self.layers:
            for state, layer_state in zip(states, layer.unbatch(count), strict=True):
                state.layers.append(layer_state)
        return states


@dataclass(slots=True)
class ResidualState(LayerState):
    """The state of a residual block.

    Attributes:
        block: state of the block's layers.
        shortcut: state of the shortcut's layers.
        pending_skip: outputs of the shortcut for which the block has no output yet, [B, m, C]; None if there were none
            so far.
    """

    block: SequentialState
    shortcut: SequentialState
    pending_skip: Tensor | None = None

    @property
    def signature(self) -> tuple[Any, ...]:
        """Signatures of both branches, and shape of the pending outputs."""
        return self.block.signature, self.shortcut.signature, _shape(self.pending_skip)

    @classmethod
    def batch(cls, states: Sequence[Self]) -> Self:
        """Join along the batch dimension, as copies."""
        return cls(
            SequentialState.batch([state.block for state in states]),
            SequentialState.batch([state.shortcut for state in states]),
            _join([state.pending_skip for state in states]),
        )

    def unbatch(self, count: int) -> list[Self]:
        """Split along the batch dimension, as copies."""
        parts = self.block.unbatch(count), self.shortcut.unbatch(count), _split(self.pending_skip, count)
        return [type(self)(*state) for state in zip(*parts, strict=True)]


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _join(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate along the batch dimension; None if the streams have no such tensor yet."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else None


def _split(tensor: Tensor | None, count: int) -> Sequence[Tensor | None]:
    """Split along the batch dimension into copies: a view would keep the tensor of all streams in memory."""
    return [None] * count if tensor is None else [part.clone() for part in tensor.chunk(count)]
