"""Streaming layers of EnCodec's decoder: outputs for the inputs so far, in chunks of any length.

`push` returns the outputs that the inputs so far determine, `finish` the rest at the end of the stream. A layer holds
weights, which all streams share; what it keeps of one stream is a state (layer_state.py). The modules of AudioCraft's
EnCodec and of Hugging Face's have the same attributes, so one class serves both. Tensors are [batch, time, channels].

A convolution depends on inputs before and after each position. The example has kernel size 5 (span 4: 2 positions
before and 2 after) and chunks of 4. `p` is padding.

    push 1   p  p |x0 x1 x2 x3                     → y0 y1
                   └─ past ──┘
    push 2        |x0 x1 x2 x3|x4 x5 x6 x7         → y2 y3 y4 y5
                               └─ past ──┘
    finish                    |x4 x5 x6 x7| p  p   → y6 y7
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicgen_bento.codec.layer_state import (
    Conv1dState,
    ConvTranspose1dState,
    LayerState,
    StackedLSTMState,
)
from musicgen_bento.codec.seanet_modules import unwrap_convolution, weight_and_bias
from musicgen_bento.codec.torch_ops import CodecOps


class StreamingLayer:
    """A layer that keeps nothing between chunks, and the interface of all layers."""

    def initial_state(self) -> Any:
        """Return the state of a new stream."""
        return LayerState()

    def push(self, x: Tensor, state: Any) -> Tensor | None:
        """Compute the outputs that the inputs so far determine.

        Args:
            x: the next inputs [B, n, C].
            state: of the B streams; updated in place, but its tensors are replaced and not written to.

        Returns:
            [B, m, C']; None if there are no outputs yet.
        """
        raise NotImplementedError

    def finish(self, state: Any) -> Tensor | None:
        """Compute the outputs that were waiting for later inputs; None if there are none."""
        return None


class StreamingActivation(StreamingLayer):
    """An elementwise activation."""

    def __init__(self, module: nn.Module, ops: CodecOps) -> None:
        self.activate = ops.activation(module)

    def push(self, x: Tensor, state: LayerState) -> Tensor:
        """Compute one output for each input."""
        return self.activate(x, None)


class StreamingConv1d(StreamingLayer):
    """A convolution of stride 1, with any dilation, causal or not.

    Attributes:
        activate: the activation of its inputs. It writes them behind the past, which saves a copy.
        span: number of inputs that an output depends on, less one.
        left_padding: positions of padding before the first input.
        look_ahead: positions of padding after the last input; so many outputs wait for later inputs.
        min_inputs: number of inputs before the first output. Reflection needs one more than it reflects.
    """

    def __init__(self, module: Any, ops: CodecOps) -> None:
        convolution = unwrap_convolution(module)
        self.module, self.pad_mode = module, module.pad_mode
        if self.pad_mode not in ("constant", "reflect", "replicate") or convolution.stride[0] != 1:
            raise TypeError(f"{type(module).__name__} with padding {self.pad_mode!r} has no streaming form.")
        dilation = convolution.dilation[0]
        self.span = (convolution.kernel_size[0] - 1) * dilation
        self.look_ahead = 0 if module.causal else self.span // 2
        self.left_padding = self.span - self.look_ahead
        self.min_inputs = max(
            self.span + 1 - self.left_padding, self.left_padding + 1 if self.pad_mode == "reflect" else 0
        )
        weight, bias = weight_and_bias(convolution)
        self._conv1d = ops.conv1d(weight, bias, dilation, convolution.groups)
        self.activate = ops.activation(nn.Identity())

    def initial_state(self) -> Conv1dState:
        """Return the state of a new stream."""
        return Conv1dState()

    def push(self, x: Tensor, state: Conv1dState) -> Tensor | None:
        """Compute as many outputs as there are inputs, but `look_ahead` fewer at the beginning."""
        x = self.activate(x, state.past)
        if not self.span:
            return self._conv1d(x)
        if not state.started:
            if x.shape[1] < self.min_inputs:
                state.past = x
                return None
            x = _pad(x, self.left_padding, 0, self.pad_mode)
            state.started = True
        state.past = x[:, x.shape[1] - self.span :].clone()  # a view would keep the whole chunk in memory
        return self._conv1d(x) if x.shape[1] > self.span else None

    def finish(self, state: Conv1dState) -> Tensor | None:
        """Compute the last `look_ahead` outputs."""
        if state.past is None:
            return None
        if not state.started:  # a clip shorter than the padding: the module handles these corner cases itself
            y: Tensor = self.module(state.past.transpose(1, 2))
            return y.transpose(1, 2)
        return self._conv1d(_pad(state.past, 0, self.look_ahead, self.pad_mode)) if self.look_ahead else None


class StreamingConvTranspose1d(StreamingLayer):
    """A transposed convolution with a kernel of two strides: a matrix product, then overlap-add.

    The product is explicit, because torch's conv_transpose1d is very slow on a CPU for a few wide inputs. The overlap
    tail does not include the bias, or the bias would be added twice.
    """

    def __init__(self, module: Any, ops: CodecOps) -> None:
        convolution = unwrap_convolution(module)
        self.stride = convolution.stride[0]
        overlap = convolution.kernel_size[0] - self.stride
        if convolution.groups != 1 or overlap != self.stride:
            raise TypeError(f"{type(module).__name__} with this kernel has no streaming form.")
        self.right_trim = math.ceil(overlap * module.trim_right_ratio) if module.causal else overlap // 2
        self.left_trim = overlap - self.right_trim
        weight, self.bias = weight_and_bias(convolution)  # [in, out, 2 * stride]
        matrix = weight.permute(2, 1, 0).reshape(-1, weight.shape[0], 1).contiguous()
        self._matmul = ops.conv1d(matrix, None, 1, 1)
        self._overlap_add = ops.overlap_add(self.bias)

    def initial_state(self) -> ConvTranspose1dState:
        """Return the state of a new stream."""
        return ConvTranspose1dState(samples_to_skip=self.left_trim)

    def push(self, x: Tensor, state: ConvTranspose1dState) -> Tensor:
        """Compute `stride` outputs for each input, but `left_trim` fewer at the beginning."""
        products = self._matmul(x).view(*x.shape[:2], 2, self.stride, -1)
        tail = torch.zeros_like(products[:, 0, 0]) if state.overlap_tail is None else state.overlap_tail
        y, state.overlap_tail = self._overlap_add(products, tail)
        return _trim_left(y, state)

    def finish(self, state: ConvTranspose1dState) -> Tensor | None:
        """Compute the outputs of the last input after its first stride."""
        if state.overlap_tail is None:
            return None
        y = state.overlap_tail[:, : self.stride - self.right_trim]
        return _trim_left(y if self.bias is None else y + self.bias, state)


class StreamingLSTM(StreamingLayer):
    """A causal LSTM of several layers, with a shortcut around it."""

    def __init__(self, module: Any, ops: CodecOps) -> None:
        self.lstm, self.shortcut = module.lstm, getattr(module, "skip", True)
        if self.lstm.bidirectional or self.lstm.batch_first or self.lstm.proj_size or not self.lstm.bias:
            raise TypeError("This kind of LSTM has no streaming form.")
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        layers = range(self.lstm.num_layers)
        self._layers = [ops.lstm(*(getattr(self.lstm, f"{name}_l{i}") for name in names)) for i in layers]

    def initial_state(self) -> StackedLSTMState:
        """Return the state of a new stream."""
        return StackedLSTMState()

    def push(self, x: Tensor, state: StackedLSTMState) -> Tensor:
        """Compute one output for each input."""
        if not state.layers:
            zeros = x.new_zeros(x.shape[0], self.lstm.hidden_size)
            state.layers = [(zeros, zeros)] * self.lstm.num_layers
        y = x
        for index, layer in enumerate(self._layers):
            y, state.layers[index] = layer(y, state.layers[index])
        return y + x if self.shortcut else y


def _pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """Pad [B, n, C] along time."""
    return F.pad(x.transpose(1, 2), (left, right), mode).transpose(1, 2)


def _trim_left(y: Tensor, state: ConvTranspose1dState) -> Tensor:
    """Drop outputs at the beginning, as many as `samples_to_skip` of the state."""
    count = min(state.samples_to_skip, y.shape[1])
    state.samples_to_skip -= count
    return y[:, count:]
