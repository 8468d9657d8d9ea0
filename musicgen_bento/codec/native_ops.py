"""Operations of the codec's layers in the C kernel (native/codec.c), on a CPU, in float32.

The kernel adds in a fixed order, so a stream's samples are the same bits in any batch and in chunks of any length.
Tensors are [batch, time, channels]: B streams, n positions, C channels.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from musicgen_bento.codec.torch_ops import ActivationFn, CodecOps, Conv1dFn, LSTMFn, LSTMState, OverlapAddFn, TorchOps
from musicgen_bento.native import bindings
from musicgen_bento.native.bindings import LANES, round_up
from musicgen_bento.native.mmap_tensor import MmapTensor

_INT16_MAX_LEVEL = 2**15 - 1  # quantized weights lie in [-level, level]
_MIN_SCALE = torch.finfo(torch.float32).tiny  # a row of zeros has this scale, so that nothing is divided by zero


def create_ops(threads: bindings.ThreadPool | None) -> CodecOps:
    """Create the operations of the kernel if it has a thread pool, else those of torch."""
    return TorchOps() if threads is None else NativeOps(threads)


class NativeOps(TorchOps):
    """The operations in the C kernel; see `CodecOps`. Where the kernel does not support one, torch computes it.

    Args:
        threads: the thread pool that runs them.
    """

    batch_all_layers = False

    def __init__(self, threads: bindings.ThreadPool) -> None:
        self.batch_invariant = True
        self._threads, self._library = threads, bindings.library()

    def conv1d(self, weight: Tensor, bias: Tensor | None, dilation: int, groups: int) -> Conv1dFn:
        """Create a convolution in the kernel; torch computes grouped ones."""
        if groups != 1:
            self.batch_invariant = False
            return super().conv1d(weight, bias, dilation, groups)
        packed = _PackedConv1d(weight, bias, dilation)
        span, outputs, threads = (weight.shape[2] - 1) * dilation, len(weight), self._threads

        def conv1d(x: Tensor) -> Tensor:
            x = x.contiguous()
            batch, positions = x.shape[:2]
            y = torch.empty(batch, positions - span, outputs)
            self._library.codec_conv1d(
                threads.handle, ctypes.byref(packed.convolution), x.data_ptr(), batch, positions, y.data_ptr()
            )
            return y

        return conv1d

    def activation(self, module: nn.Module) -> ActivationFn:
        """Create an ELU in the kernel; torch computes other activations."""
        if not isinstance(module, nn.ELU) or module.alpha != 1:
            self.batch_invariant &= isinstance(module, nn.Identity)
            return super().activation(module)
        threads = self._threads

        def elu(x: Tensor, prefix: Tensor | None) -> Tensor:
            x = x.contiguous()
            batch, positions, channels = x.shape
            begin = 0 if prefix is None else prefix.shape[1]
            y = torch.empty(batch, begin + positions, channels)
            if prefix is not None:
                y[:, :begin] = prefix
            sizes = batch, positions * channels, begin * channels
            self._library.codec_elu(threads.handle, x.data_ptr(), *sizes, y.data_ptr())
            return y

        return elu

    def overlap_add(self, bias: Tensor | None) -> OverlapAddFn:
        """Create an overlap-add in the kernel."""
        threads, kernel_bias = self._threads, None if bias is None else bias.contiguous()

        def overlap_add(products: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
            batch, positions, _, stride, channels = products.shape
            added = torch.zeros(channels) if kernel_bias is None else kernel_bias
            next_tail, y = tail.clone(), torch.empty(batch, positions * stride, channels)
            self._library.codec_overlap_add(
                threads.handle,
                products.data_ptr(),
                added.data_ptr(),
                *(batch, positions, stride, channels),
                next_tail.data_ptr(),
                y.data_ptr(),
            )
            return y, next_tail

        return overlap_add

    def lstm(self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor) -> LSTMFn:
        """Create an LSTM layer in the kernel; torch computes sizes that are no multiple of the vector width."""
        units = weight_hh.shape[1]
        if units % LANES:
            self.batch_invariant = False
            return super().lstm(weight_ih, weight_hh, bias_ih, bias_hh)
        packed = _PackedLSTM(weight_ih, weight_hh, bias_ih + bias_hh)
        threads = self._threads

        def lstm(x: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
            x = x.contiguous()
            batch, positions = x.shape[:2]
            y, gates = torch.empty_like(x), torch.empty(batch, positions, 4 * units)
            # The kernel alternates between two hidden states; the result is in the first.
            hidden, cell = torch.stack([state[0], state[0]]), state[1].clone()
            self._library.codec_lstm(
                threads.handle,
                ctypes.byref(packed.recurrence),
                x.data_ptr(),
                batch,
                positions,
                *(tensor.data_ptr() for tensor in (gates, hidden, cell, y)),
            )
            return y, (hidden[0], cell)

        return lstm


class _PackedConv1d:
    """Weights [out, in, taps] and bias of a convolution in the kernel's layout.

    Attributes:
        weight: packed, [out / 16, taps * in, 16].
        convolution: the kernel's struct, which points to the weight and the bias.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dilation: int) -> None:
        weight = weight.float().contiguous()
        outputs, inputs, taps = weight.shape
        self._mapping = MmapTensor(round_up(outputs, LANES) * inputs * taps, huge=True)
        self.weight, self._bias = self._mapping.tensor, torch.zeros(round_up(outputs, LANES))
        if bias is not None:
            self._bias[:outputs] = bias
        bindings.library().codec_pack_conv1d(weight.data_ptr(), outputs, inputs, taps, self.weight.data_ptr())
        self.convolution = bindings.PackedConv1d(
            self.weight.data_ptr(), self._bias.data_ptr(), inputs, outputs, taps, dilation
        )


class _PackedLSTM:
    """Weights of one LSTM layer in the kernel's layout.

    The recurrent weights are 16-bit integers with one scale per row, because each frame reads all of them from memory.

    Args:
        weight_ih: input weights [4 * C, C].
        weight_hh: recurrent weights [4 * C, C].
        bias: sum of both biases, [4 * C].

    Attributes:
        recurrence: the kernel's struct, which points to the tensors of this object.
    """

    def __init__(self, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor) -> None:
        units = weight_hh.shape[1]
        # groups of sixteen units; in a group, gate by gate
        order = torch.arange(4 * units).view(4, -1, LANES).transpose(0, 1).flatten()
        self._input = _PackedConv1d(weight_ih[order, :, None], bias[order], 1)
        scales = (weight_hh.float().abs().amax(dim=1) / _INT16_MAX_LEVEL).clamp(min=_MIN_SCALE)
        levels = (weight_hh / scales[:, None]).round().view(4, -1, LANES, units).permute(1, 3, 0, 2)
        self._weight = MmapTensor(*levels.shape, dtype=torch.int16, huge=True)
        self._weight.tensor.copy_(levels)
        self._scales = scales[order]
        self.recurrence = bindings.PackedLstm(
            self._weight.tensor.data_ptr(), self._scales.data_ptr(), self._input.convolution
        )
