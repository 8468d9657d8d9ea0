"""FBGEMM, PyTorch's products of packed matrices for x86 processors, and how fine its whole numbers are on this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

_INT8: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
_HALF: Any = torch.ops.quantized.linear_dynamic_fp16.default


def available() -> bool:
    """Whether this processor has it."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def pack_half(weight: Tensor) -> Any:
    """A matrix [out, in], to float16."""
    with _engine():
        return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)


def pack_int8(weight: Tensor) -> Any:
    """A matrix [out, in], to int8 with a scale for each output."""
    weight = weight.float()
    scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
    zero = torch.zeros(len(weight), dtype=torch.int64)
    with _engine():
        rounded = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(rounded, None)


def times_half(x: Tensor, packed: Any) -> Tensor:
    """Rows [R, in] of float32 with a matrix that `pack_half` made → [R, out], summed in float32."""
    out: Tensor = _HALF(x, packed)
    return out


def times_int8(x: Tensor, levels: int, packed: Any) -> Tensor:
    """Rows [R, in] within ±1, rounded to so many levels on either side of 0, with a matrix that `pack_int8` made."""
    out: Tensor = _INT8(x, 1 / levels, levels + 1, packed)
    return out


@cache
def levels() -> int:
    """How many levels a row may have on either side of 0 on this processor: 127, or 63.

    Without VNNI two products of bytes are summed in 16 bits, which do not hold the largest ones.
    """
    packed = pack_int8(torch.full((8, 64), 0.5))
    return 127 if torch.allclose(times_int8(torch.ones(2, 64), 127, packed), torch.tensor(32.0)) else 63


@contextmanager
def _engine() -> Iterator[None]:
    """While matrices are packed: by FBGEMM, for the processor at hand."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
