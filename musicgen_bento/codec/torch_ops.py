"""What the codec's layers are made of, by torch: on a GPU, and on a CPU that the kernel has nothing for."""

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
"""[B, n, C], and [B, m, C] that comes before it as it is, or None → [B, m + n, C]."""

LSTMState: TypeAlias = tuple[Tensor, Tensor]
"""Of an LSTM's layer: what it said last and its cells, [B, C] each."""

OverlapAddFn: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Products [B, n, 2, stride, C] and a tail [B, stride, C] → [B, n * stride, C] and the next tail."""

LSTMFn: TypeAlias = Callable[[Tensor, LSTMState], tuple[Tensor, LSTMState]]
"""[B, n, C] and the state before → [B, n, C] and the state after."""


class CodecOps(Protocol):
    """A way to run them. Weights are as torch has them.

    Attributes:
        side_by_side: whether all layers are best run for several clips together. If not, those after the LSTM are run
            clip by clip: their weights are small, and a clip's numbers then stay in the processor's caches.
        exact: whether all that it has made so far gives a clip the same numbers in any company.
    """

    batch_all_layers: bool
    batch_invariant: bool

    def conv1d(self, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Conv1dFn:
        """Of stride 1, without padding; weight [out, in / groups, taps]."""

    def activation(self, module: nn.Module) -> ActivationFn:
        """Number by number, behind what there is already."""

    def overlap_add(self, bias: Tensor | None) -> OverlapAddFn:
        """The sum of a transposed convolution's products, each of which lies over two strides."""

    def lstm(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> LSTMFn:
        """A layer of an LSTM; weights [4 * C, C], gates in torch's order: input, forget, cell, output."""


class TorchOps:
    """See `Operations`."""

    batch_all_layers = True
    batch_invariant = False

    def conv1d(self, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Conv1dFn:
        """See `Operations`."""
        if weight.shape[2] == groups == 1 and bias is None:
            matrix = weight[:, :, 0]
            return lambda x: matmul(x.flatten(0, 1), matrix).view(*x.shape[:2], -1)

        def convolve(x: Tensor) -> Tensor:
            return F.conv1d(x.transpose(1, 2), weight, bias, dilation=dilation, groups=groups).transpose(1, 2)

        return convolve

    def activation(self, module: nn.Module) -> ActivationFn:
        """See `Operations`."""

        def activate(x: Tensor, before: Tensor | None) -> Tensor:
            y: Tensor = module(x)
            return y if before is None else torch.cat([before, y], dim=1)

        return activate

    def overlap_add(self, bias: Tensor | None) -> OverlapAddFn:
        """See `Operations`."""

        def add(products: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
            now, later = products.unbind(dim=2)
            y = now + torch.cat([tail[:, None], later[:, :-1]], dim=1)
            y = y.flatten(1, 2)
            return y if bias is None else y + bias, later[:, -1].clone()

        return add

    def lstm(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> LSTMFn:
        """See `Operations`. Spelled out for short runs: on a CPU, nn.LSTM repacks its weights in each call."""

        def recur(x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
            hidden, cell = state
            gates_in = matmul(x.flatten(0, 1), weight_ih).view(*x.shape[:2], -1) + (bias_ih + bias_hh)
            outputs = []
            for gates in gates_in.unbind(dim=1):
                i, f, g, o = (matmul(hidden, weight_hh) + gates).chunk(4, dim=-1)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                hidden = torch.sigmoid(o) * torch.tanh(cell)
                outputs.append(hidden)
            return torch.stack(outputs, dim=1), (hidden, cell)

        return recur
