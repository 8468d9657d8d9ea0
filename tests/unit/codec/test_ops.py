"""The operations report whether they are batch-invariant."""

from __future__ import annotations

import pytest
import torch

from musicgen_bento.codec.decoder import CodecDecoder
from musicgen_bento.codec.native_ops import create_ops
from musicgen_bento.codec.torch_ops import CodecOps
from musicgen_bento.native.bindings import ThreadPool
from tests.support.tiny_models import MONO, load


def test_a_codec_that_the_kernel_supports_is_batch_invariant() -> None:
    ops = create_ops(ThreadPool(1))
    CodecDecoder(load(MONO).codec, ops)
    assert ops.batch_invariant


def test_a_codec_in_torch_is_not_batch_invariant() -> None:
    assert not create_ops(None).batch_invariant


def grouped_conv1d(ops: CodecOps) -> object:
    return ops.conv1d(torch.ones(4, 1, 3), None, 1, 4)


def tanh(ops: CodecOps) -> object:
    return ops.activation(torch.nn.Tanh())


def lstm_of_odd_size(ops: CodecOps) -> object:
    return ops.lstm(torch.ones(12, 3), torch.ones(12, 3), torch.ones(12), torch.ones(12))


@pytest.mark.parametrize("create", [grouped_conv1d, tanh, lstm_of_odd_size])
def test_an_operation_that_falls_back_to_torch_ends_batch_invariance(create: object) -> None:
    ops = create_ops(ThreadPool(1))
    assert callable(create)
    create(ops)
    assert not ops.batch_invariant
