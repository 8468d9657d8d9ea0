"""Streaming layers that consist of other layers, and the streaming form of any SEANet module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from musicgen_bento.codec.layer_state import LayerState, ResidualState, SequentialState
from musicgen_bento.codec.layers import (
    StreamingActivation,
    StreamingConv1d,
    StreamingConvTranspose1d,
    StreamingLayer,
    StreamingLSTM,
)
from musicgen_bento.codec.torch_ops import CodecOps


class StreamingSequential(StreamingLayer):
    """Layers in sequence. An activation in front of a convolution is merged into it."""

    def __init__(self, modules: Any, ops: CodecOps) -> None:
        self.layers: list[StreamingLayer] = []
        for module in modules:
            layer = make_streaming(module, ops)
            previous = self.layers[-1] if self.layers else None
            if isinstance(layer, StreamingConv1d) and isinstance(previous, StreamingActivation):
                layer.activate = previous.activate
                self.layers.pop()
            self.layers.append(layer)

    def initial_state(self) -> SequentialState:
        """Return the state of a new stream."""
        return SequentialState([layer.initial_state() for layer in self.layers])

    def push(self, x: Tensor, state: SequentialState) -> Tensor | None:
        """Push the inputs through the layers, until one has no outputs yet."""
        return push_through(self.layers, x, state.layers)

    def finish(self, state: SequentialState) -> Tensor | None:
        """Finish each layer in turn, and push what it returns through the layers behind it."""
        rest: Tensor | None = None
        for layer, layer_state in zip(self.layers, state.layers, strict=True):
            parts = [push_through([layer], rest, [layer_state]), layer.finish(layer_state)]
            present = [part for part in parts if part is not None]
            rest = torch.cat(present, dim=1) if present else None
        return rest


class StreamingResidual(StreamingLayer):
    """shortcut(x) + block(x). The block looks ahead, so outputs of the shortcut wait for those of the block."""

    def __init__(self, module: Any, ops: CodecOps) -> None:
        self.block = StreamingSequential(module.block, ops)
        self.shortcut = StreamingSequential([] if isinstance(module.shortcut, nn.Identity) else [module.shortcut], ops)

    def initial_state(self) -> ResidualState:
        """Return the state of a new stream."""
        return ResidualState(self.block.initial_state(), self.shortcut.initial_state())

    def push(self, x: Tensor, state: ResidualState) -> Tensor | None:
        """Compute the sum as far as the block has outputs."""
        skip = self.shortcut.push(x, state.shortcut)
        return _add_skip(skip, self.block.push(x, state.block), state)

    def finish(self, state: ResidualState) -> Tensor | None:
        """Compute the rest of the sum."""
        skip = self.shortcut.finish(state.shortcut)
        return _add_skip(skip, self.block.finish(state.block), state)


def push_through(layers: list[StreamingLayer], x: Tensor | None, states: list[LayerState]) -> Tensor | None:
    """Push inputs [B, n, C] through layers in sequence, until one has no outputs yet."""
    for layer, state in zip(layers, states, strict=True):
        if x is None or x.shape[1] == 0:
            return None
        x = layer.push(x, state)
    return x


def make_streaming(module: Any, ops: CodecOps) -> StreamingLayer:
    """Return the streaming form of a SEANet module. Its kind is recognized by its attributes.

    AudioCraft and transformers use the same names for these.

    Raises:
        TypeError: the module has no streaming form.
    """
    if hasattr(module, "block") and hasattr(module, "shortcut"):
        return StreamingResidual(module, ops)
    if hasattr(module, "lstm"):
        return StreamingLSTM(module, ops)
    if hasattr(module, "trim_right_ratio"):
        return StreamingConvTranspose1d(module, ops)
    if hasattr(module, "pad_mode"):
        return StreamingConv1d(module, ops)
    if isinstance(module, nn.ELU | nn.Identity | nn.Tanh | nn.ReLU | nn.LeakyReLU):
        return StreamingActivation(module, ops)
    raise TypeError(f"{type(module).__name__} has no streaming form.")


def _add_skip(skip: Tensor | None, y: Tensor | None, state: ResidualState) -> Tensor | None:
    """Add the shortcut's outputs to the block's outputs y, in place; keep those that y does not reach yet."""
    available = [part for part in (state.pending_skip, skip) if part is not None]
    wanted = 0 if y is None else y.shape[1]
    begin, remaining = 0, []
    for part in available:
        count = min(wanted - begin, part.shape[1])
        if y is not None:
            y[:, begin : begin + count] += part[:, :count]
        remaining.append(part[:, count:])
        begin += count
    state.pending_skip = torch.cat(remaining, dim=1) if remaining else None
    return y
