"""Operations of the codec's layers in torch: on a GPU, and on a CPU where the C kernel does not support them.

Tensors are [batch, time, channels]: B streams, n positions, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from musicgen_bento.lm.linear import matmul

Conv1dFn: TypeAlias = Callable[[Tensor], Tensor]
"""[B, n, C] → [B, m, C']."""

ActivationFn: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""Inputs [B, n, C] and an unchanged prefix [B, m, C] or None → [B, m + n, C]."""

LSTMState: TypeAlias = tuple[Tensor, Tensor]
"""Hidden state and cell state of one LSTM layer, [B, C] each."""

OverlapAddFn: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Products [B, n, 2, stride, C] and the tail [B, stride, C] → [B, n * stride, C] and the next tail."""

LSTMFn: TypeAlias = Callable[[Tensor, LSTMState], tuple[Tensor, LSTMState]]
"""[B, n, C] and the state before → [B, n, C] and the state after."""


class CodecOps(Protocol):
    """Creates the functions that the codec's layers call. Weights have torch's layout.

    Attributes:
        batch_all_layers: whether all layers are faster for several streams together. If not, the layers after the
            LSTM run stream by stream: their weights are small, and one stream's values stay in the CPU's caches.
        batch_invariant: whether the functions created so far give a stream the same bits in any batch.
    """

    batch_all_layers: bool
    batch_invariant: bool

    def conv1d(self, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Conv1dFn:
        """Create a convolution of stride 1 without padding; weight [out, in / groups, taps]."""

    def activation(self, module: nn.Module) -> ActivationFn:
        """Create an elementwise activation that writes its outputs after a prefix."""

    def overlap_add(self, bias: Tensor | None) -> OverlapAddFn:
        """Create the overlap-add of a transposed convolution's products, each of which spans two strides."""

    def lstm(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> LSTMFn:
        """Create one LSTM layer; weights [4 * C, C], gates in torch's order: input, forget, cell, output."""


class TorchOps:
    """The operations in torch; see `CodecOps`."""

    batch_all_layers = True
    batch_invariant = False

    def conv1d(self, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Conv1dFn:
        """Create a convolution; one of a single tap without bias is a matrix product."""
        if weight.shape[2] == groups == 1 and bias is None:
            matrix = weight[:, :, 0]
            return lambda x: matmul(x.flatten(0, 1), matrix).view(*x.shape[:2], -1)

        def conv1d(x: Tensor) -> Tensor:
            return F.conv1d(x.transpose(1, 2), weight, bias, dilation=dilation, groups=groups).transpose(1, 2)

        return conv1d

    def activation(self, module: nn.Module) -> ActivationFn:
        """Create an activation that calls the module."""

        def activate(x: Tensor, prefix: Tensor | None) -> Tensor:
            y: Tensor = module(x)
            return y if prefix is None else torch.cat([prefix, y], dim=1)

        return activate

    def overlap_add(self, bias: Tensor | None) -> OverlapAddFn:
        """Create an overlap-add."""

        def overlap_add(products: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
            first_strides, second_strides = products.unbind(dim=2)
            y = first_strides + torch.cat([tail[:, None], second_strides[:, :-1]], dim=1)
            y = y.flatten(1, 2)
            return y if bias is None else y + bias, second_strides[:, -1].clone()

        return overlap_add

    def lstm(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> LSTMFn:
        """Create an LSTM layer out of matrix products: on a CPU, nn.LSTM repacks its weights in each call."""

        def lstm(x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
            hidden, cell = state
            input_gates = matmul(x.flatten(0, 1), weight_ih).view(*x.shape[:2], -1) + (bias_ih + bias_hh)
            outputs = []
            for gates in input_gates.unbind(dim=1):
                i, f, g, o = (matmul(hidden, weight_hh) + gates).chunk(4, dim=-1)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                hidden = torch.sigmoid(o) * torch.tanh(cell)
                outputs.append(hidden)
            return torch.stack(outputs, dim=1), (hidden, cell)

        return lstm
