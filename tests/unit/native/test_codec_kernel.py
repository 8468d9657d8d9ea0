"""The codec layers of each kernel variant, compared with torch."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from musicgen_bento.codec.native_ops import NativeOps, create_ops
from musicgen_bento.codec.torch_ops import CodecOps, TorchOps
from musicgen_bento.native import bindings


def test_convolutions_and_elu_equal_torch_and_are_batch_invariant(kernel: Any) -> None:
    native, reference = NativeOps(bindings.ThreadPool(2)), TorchOps()
    torch.manual_seed(0)
    for inputs, outputs, taps, dilation, positions in [
        (5, 33, 7, 1, 40),
        (64, 1, 7, 1, 130),
        (32, 48, 3, 2, 9),
        (3, 4, 1, 1, 1),
    ]:
        weight, bias = torch.randn(outputs, inputs, taps), torch.randn(outputs)
        x = torch.randn(3, positions, inputs)
        batch, expected = (ops.conv1d(weight, bias, dilation, 1)(x) for ops in (native, reference))
        torch.testing.assert_close(batch, expected, atol=1e-4, rtol=1e-5)
        alone = native.conv1d(weight, bias, dilation, 1)(x[1:2, : taps * dilation + 1])
        assert torch.equal(alone[0], batch[1, : alone.shape[1]])
    x = torch.randn(2, 13, 7) * 3
    elu, prefix = native.activation(torch.nn.ELU()), torch.randn(2, 3, 7)
    torch.testing.assert_close(elu(x, None), F.elu(x), atol=1e-6, rtol=1e-6)
    assert torch.equal(elu(x, prefix), torch.cat([prefix, elu(x, None)], dim=1))


def test_an_lstm_equals_torch_and_is_batch_invariant(kernel: Any) -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(48, 48)
    with torch.no_grad():  # round the weights to what 16 bits can represent
        weight = lstm.weight_hh_l0
        step = weight.abs().amax(dim=1, keepdim=True) / (2**15 - 1)
        weight.copy_((weight / step).round() * step)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer = NativeOps(bindings.ThreadPool(2)).lstm(*(getattr(lstm, name).detach() for name in names))
    x = torch.randn(5, 9, 48)
    with torch.no_grad():
        expected, _ = lstm(x.transpose(0, 1))
    state = (torch.zeros(5, 48), torch.zeros(5, 48))
    first, state = layer(x[:, :4], state)
    second, _ = layer(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected.transpose(0, 1), atol=1e-6, rtol=1e-5)
    assert torch.equal(layer(x[2:3, :4], (torch.zeros(1, 48), torch.zeros(1, 48)))[0], first[2:3])


def test_torch_computes_what_the_kernel_does_not_support() -> None:
    native: CodecOps = NativeOps(bindings.ThreadPool(1))
    x, weight = torch.randn(1, 10, 4), torch.randn(4, 1, 3)
    grouped = native.conv1d(weight, None, 1, 4)(x)
    assert torch.equal(grouped, TorchOps().conv1d(weight, None, 1, 4)(x))
    assert torch.equal(native.activation(torch.nn.Tanh())(x, x), torch.cat([x, x.tanh()], dim=1))
    assert create_ops(None).batch_all_layers
