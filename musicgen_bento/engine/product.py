"""Products of rows with a matrix, one class for each way to hold the matrix.

In int8 a row's result is the same, bit for bit, in any company: what a row is scaled by is its own, and sums are whole
numbers. Sums of floats round differently in batches of different sizes.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento import fbgemm
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
    """In float16, packed; rows, sums and results are float32."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = fbgemm.pack_half(weight)
        self.outputs, self.numbers = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        return fbgemm.times_half(x, self._packed)


class Int8:
    """In int8 with a scale for each output, packed.

    Each row is scaled to ±1 and rounded to whole numbers; products are summed as integers, so exactly; results are
    float32.

    Args:
        weight: the matrix.
        fine: multiply what the rounding has left over too, as a second row: 13 or 15 bits a number instead of 6 or 7,
            and the matrix is read once all the same.
    """

    def __init__(self, weight: Tensor, *, fine: bool = False) -> None:
        self._packed = fbgemm.pack_int8(weight)
        self._levels = fbgemm.levels()
        self.fine = fine
        self.outputs, self.numbers = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        peak = x.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12)
        return self._multiply(x / peak).mul_(peak)

    def _multiply(self, x: Tensor) -> Tensor:
        """Rows within ±1."""
        levels = self._levels
        if not self.fine:
            return fbgemm.times_int8(x, levels, self._packed)
        coarse = torch.fake_quantize_per_tensor_affine(x, 1 / levels, 0, -levels, levels)
        left = (x - coarse).mul_(2 * levels)  # within ±1 again: half a level at most
        both = fbgemm.times_int8(torch.cat([coarse, left]), levels, self._packed)
        return torch.add(both[: len(x)], both[len(x) :], alpha=0.5 / levels)


def product(weight: Tensor, precision: Precision, *, fine: bool = False) -> Product:
    """A matrix [out, in] as the precision holds it.

    Args:
        weight: on its device; on the meta device it stays a mere size.
        precision: of the model.
        fine: in int8, see `Int8`.
    """
    if weight.device.type != "meta" and precision.matrices != precision.rest:
        return Int8(weight, fine=fine) if precision.matrices == torch.int8 else Half(weight)
    return Dense(weight.to(precision.rest))
