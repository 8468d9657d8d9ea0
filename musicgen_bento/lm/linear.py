"""Products of rows with a matrix, one class for each way that torch holds the matrix.

Sums of floats round differently in batches of different sizes.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento.native import fbgemm
from musicgen_bento.precision import Precision

LARGE = 2**19  # numbers; smaller matrices are slower the other way round
PARTS = 8


class Linear(Protocol):
    """A matrix [out, in], ready to be multiplied with.

    Attributes:
        outputs: rows of the matrix.
        numbers: outputs times inputs.
    """

    out_features: int
    num_params: int

    def __call__(self, x: Tensor) -> Tensor:
        """Rows [R, in] → [R, out]."""


class DenseLinear:
    """In the dtype of the rows."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.out_features, self.num_params = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        return matmul(x, self.weight)


def matmul(rows: Tensor, matrix: Tensor) -> Tensor:
    """Rows [R, in] with a matrix [out, in] → [R, out].

    For few rows and a large matrix in float32 MKL is up to 3 times as fast the other way round, the matrix times
    columns; and it has one thread for one column, so it is given the matrix in parts.
    """
    if not rows.is_cpu or rows.dtype != torch.float32 or matrix.numel() < LARGE:
        return F.linear(rows, matrix)
    parts = matrix.view(math.gcd(PARTS, len(matrix)), -1, matrix.shape[1])
    columns = torch.bmm(parts, rows.T.expand(len(parts), -1, -1))
    return columns.view(len(matrix), -1).T.contiguous()


class PackedFp16Linear:
    """In float16, packed; rows, sums and results are float32."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = fbgemm.pack_float16(weight)
        self.out_features, self.num_params = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """See `Product`."""
        return fbgemm.linear_float16(x, self._packed)


def make_linear(weight: Tensor, precision: Precision) -> Linear:
    """A matrix [out, in] as the precision holds it.

    Args:
        weight: on its device; on the meta device it stays a mere size.
        precision: of the model; where the kernel runs it, the matrix stays as it is until it is packed.
    """
    if precision.native_kernel:
        return DenseLinear(weight)
    if weight.device.type != "meta" and precision.weight_dtype != precision.compute_dtype:
        return PackedFp16Linear(weight)
    return DenseLinear(weight.to(precision.compute_dtype))
