"""Products of rows with a matrix, one class for each way to hold the matrix.

In int8 a row's result is the same, bit for bit, in any company: what a row is scaled by is its own, and sums are whole
numbers. Sums of floats round differently in batches of different sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento.precision import Precision

LARGE = 2**19  # numbers; smaller matrices are slower the other way round
PARTS = 8


class Product(Protocol):
    """A matrix [out, in], ready to be multiplied with.

    Attributes:
        outputs: rows of the matrix.
        numbers: outputs times inputs.
    """

    outputs: int
    numbers: int

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [R, in] → [R, out]."""


class Dense:
    """In the dtype of the rows."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self.outputs, self.numbers = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        return times(x, self._weight)


def times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows [R, in] with a matrix [out, in] → [R, out].

    For few rows and a large matrix in float32 MKL is up to 3 times as fast the other way round, the matrix times
    columns; and it has one thread for one column, so it is given the matrix in parts.
    """
    if not rows.is_cpu or rows.dtype != torch.float32 or matrix.numel() < LARGE:
        return F.linear(rows, matrix)
    parts = matrix.view(math.gcd(PARTS, len(matrix)), -1, matrix.shape[1])
    columns = torch.bmm(parts, rows.T.expand(len(parts), -1, -1))
    return columns.view(len(matrix), -1).T.contiguous()


class Half:
    """In float16, packed for FBGEMM; rows, sums and results are float32."""

    def __init__(self, weight: Tensor) -> None:
        with _fbgemm():
            self._packed: Any = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
        self.outputs, self.numbers = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        out: Tensor = _HALF(x, self._packed)
        return out


class Int8:
    """In int8 with a scale for each output, packed for FBGEMM.

    Each row is scaled to ±1 and rounded to whole numbers; products are summed as integers, so exactly; results are
    float32.
    """

    def __init__(self, weight: Tensor) -> None:
        weight = weight.float()
        scale = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
        zero = torch.zeros(len(weight), dtype=torch.int64)
        with _fbgemm():
            rounded = torch.quantize_per_channel(weight, scale, zero, 0, torch.qint8)
            self._packed: Any = torch.ops.quantized.linear_prepack(rounded, None)
        self._levels = levels()
        self.outputs, self.numbers = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        peak = x.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12)
        return _multiply(x / peak, self._levels, self._packed).mul_(peak)


_INT8: Any = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
_HALF: Any = torch.ops.quantized.linear_dynamic_fp16.default


def _multiply(x: Tensor, levels: int, packed: Any) -> Tensor:
    """Rows within ±1, rounded to so many levels on either side of 0, with a packed matrix."""
    out: Tensor = _INT8(x, 1 / levels, levels + 1, packed)
    return out


@cache
def levels() -> int:
    """How many levels a row may have on either side of 0 on this processor: 127, or 63.

    Without VNNI two products of bytes are summed in 16 bits, which do not hold the largest ones.
    """
    weight = torch.full((8, 64), 127 / 128)
    with _fbgemm():
        zero = torch.zeros(8, dtype=torch.int64)
        rounded = torch.quantize_per_channel(weight, torch.full((8,), 1 / 128), zero, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(rounded, None)
    return 127 if torch.allclose(_multiply(torch.ones(2, 64), 127, packed), torch.tensor(63.5)) else 63


@contextmanager
def _fbgemm() -> Iterator[None]:
    """While matrices are packed: by FBGEMM, for the processor at hand."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def product(weight: Tensor, precision: Precision) -> Product:
    """A matrix [out, in] as the precision holds it.

    Args:
        weight: on its device; on the meta device it stays a mere size.
        precision: of the model.
    """
    if weight.device.type != "meta" and precision.matrices != precision.rest:
        return Int8(weight) if precision.matrices == torch.int8 else Half(weight)
    return Dense(weight.to(precision.rest))
