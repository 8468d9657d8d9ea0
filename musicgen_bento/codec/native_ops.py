"""The same by the kernel, on a CPU: a clip's samples are the same in any company, and in blocks of any length."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from musicgen_bento.codec.torch_ops import ActivationFn, CodecOps, Conv1dFn, LSTMFn, LSTMState, OverlapAddFn, TorchOps
from musicgen_bento.lm.seats import round_up
from musicgen_bento.native import bindings
from musicgen_bento.native.bindings import LANES
from musicgen_bento.native.mmap_tensor import MmapTensor

_LEVELS = 2**15 - 1  # of a number in 16 bits, either way
_SMALLEST = torch.finfo(torch.float32).tiny


def create_ops(team: bindings.ThreadPool | None) -> CodecOps:
    """The kernel's, or torch's where there is none."""
    return TorchOps() if team is None else NativeOps(team)


class NativeOps(TorchOps):
    """See `Operations`. What the kernel does not have is torch's.

    Args:
        team: whose threads run them.
    """

    batch_all_layers = False

    def __init__(self, team: bindings.ThreadPool) -> None:
        self._team, self._kernel, self.exact = team, bindings.library(), True

    def conv1d(self, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Conv1dFn:
        """See `Operations`."""
        if groups != 1:
            self.exact = False
            return super().conv1d(weight, bias, dilation, groups)
        packed = _Packed(weight, bias, dilation)
        span, outputs, team = (weight.shape[2] - 1) * dilation, len(weight), self._team

        def convolve(x: Tensor) -> Tensor:
            x = x.contiguous()
            clips, positions = x.shape[:2]
            y = torch.empty(clips, positions - span, outputs)
            self._kernel.codec_convolve(
                team.handle, ctypes.byref(packed.convolution), x.data_ptr(), clips, positions, y.data_ptr()
            )
            return y

        return convolve

    def activation(self, module: nn.Module) -> ActivationFn:
        """See `Operations`."""
        if not isinstance(module, nn.ELU) or module.alpha != 1:
            self.exact &= isinstance(module, nn.Identity)
            return super().activation(module)
        team = self._team

        def elu(x: Tensor, before: Tensor | None) -> Tensor:
            x = x.contiguous()
            clips, positions, channels = x.shape
            begin = 0 if before is None else before.shape[1]
            y = torch.empty(clips, begin + positions, channels)
            if before is not None:
                y[:, :begin] = before
            sizes = clips, positions * channels, begin * channels
            self._kernel.codec_elu(team.handle, x.data_ptr(), *sizes, y.data_ptr())
            return y

        return elu

    def overlap_add(self, bias: Tensor | None) -> OverlapAddFn:
        """See `Operations`."""
        team, kept = self._team, None if bias is None else bias.contiguous()

        def add(products: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
            clips, times, _, stride, channels = products.shape
            added = torch.zeros(channels) if kept is None else kept
            tail, y = tail.clone(), torch.empty(clips, times * stride, channels)
            self._kernel.codec_overlap(
                team.handle,
                products.data_ptr(),
                added.data_ptr(),
                *(clips, times, stride, channels),
                tail.data_ptr(),
                y.data_ptr(),
            )
            return y, tail

        return add

    def lstm(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> LSTMFn:
        """See `Operations`."""
        units = weight_hh.shape[1]
        if units % LANES:
            self.exact = False
            return super().lstm(weight_ih, weight_hh, bias_ih, bias_hh)
        # sixteen units side by side, gate by gate
        order = torch.arange(4 * units).view(4, -1, LANES).transpose(0, 1).flatten()
        heard = _Packed(weight_ih[order, :, None], (bias_ih + bias_hh)[order], 1)
        scales = (weight_hh.float().abs().amax(dim=1) / _LEVELS).clamp(min=_SMALLEST)
        numbers = (weight_hh / scales[:, None]).round().view(4, -1, LANES, units).permute(1, 3, 0, 2)
        before, scales = MmapTensor(*numbers.shape, dtype=torch.int16, huge=True), scales[order]
        before.tensor.copy_(numbers)
        recurrence = bindings.Recurrence(before.tensor.data_ptr(), scales.data_ptr(), heard.convolution)
        recurrence.kept, team = (heard, before, scales), self._team

        def recur(x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
            x = x.contiguous()
            clips, positions = x.shape[:2]
            y, gates = torch.empty_like(x), torch.empty(clips, positions, 4 * units)
            hidden, cell = torch.stack([state[0], state[0]]), state[1].clone()
            self._kernel.codec_recur(
                team.handle,
                ctypes.byref(recurrence),
                x.data_ptr(),
                clips,
                positions,
                *(each.data_ptr() for each in (gates, hidden, cell, y)),
            )
            return y, (hidden[0], cell)

        return recur


class _Packed:
    """Weights [out, in, taps] and what is added, as the kernel has them.

    Attributes:
        weight: packed.
        convolution: as the kernel has it.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dilation: int) -> None:
        weight = weight.float().contiguous()
        outputs, inputs, taps = weight.shape
        self._pages = MmapTensor(round_up(outputs, LANES) * inputs * taps, huge=True)
        self.weight, self._bias = self._pages.tensor, torch.zeros(round_up(outputs, LANES))
        if bias is not None:
            self._bias[:outputs] = bias
        bindings.library().codec_pack(weight.data_ptr(), outputs, inputs, taps, self.weight.data_ptr())
        self.convolution = bindings.Convolution(
            self.weight.data_ptr(), self._bias.data_ptr(), inputs, outputs, taps, dilation
        )
