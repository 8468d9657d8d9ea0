"""Linear layers without bias, one class for each way that torch holds the matrix.

Float sums round differently in batches of different sizes, so these products are not batch-invariant.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from musicgen_bento.native import fbgemm
from musicgen_bento.precision import Precision

MIN_TRANSPOSED_ELEMENTS = 2**19  # products with smaller matrices are slower in transposed form
MAX_PARTS = 8


class Linear(Protocol):
    """A matrix [out, in] that rows are multiplied with.

    Attributes:
        out_features: rows of the matrix.
        num_params: elements of the matrix.
    """

    out_features: int
    num_params: int

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows [R, in] → [R, out]."""


class DenseLinear:
    """A matrix as a tensor, in the dtype of the rows."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.out_features, self.num_params = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows [R, in] → [R, out]."""
        return matmul(x, self.weight)


def matmul(rows: Tensor, matrix: Tensor) -> Tensor:
    """Multiply rows [R, in] with a matrix [out, in] → [R, out].

    For few rows and a large float32 matrix, MKL computes the transposed product (matrix times columns) up to 3 times as
    fast. MKL uses one thread for one column, so the matrix is divided into parts.
    """
    if not rows.is_cpu or rows.dtype != torch.float32 or matrix.numel() < MIN_TRANSPOSED_ELEMENTS:
        return F.linear(rows, matrix)
    parts = matrix.view(math.gcd(MAX_PARTS, len(matrix)), -1, matrix.shape[1])
    columns = torch.bmm(parts, rows.T.expand(len(parts), -1, -1))
    return columns.view(len(matrix), -1).T.contiguous()


class PackedFp16Linear:
    """A matrix in float16, packed by FBGEMM; rows, sums and results are float32."""

    def __init__(self, weight: Tensor) -> None:
        self._packed = fbgemm.pack_float16(weight)
        self.out_features, self.num_params = weight.shape[0], weight.numel()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply rows [R, in] → [R, out]."""
        return fbgemm.linear_float16(x, self._packed)


def make_linear(weight: Tensor, precision: Precision) -> Linear:
    """Create the linear layer for a matrix [out, in] in a precision.

    Args:
        weight: the matrix. On the meta device the layer only has a size.
        precision: the precision of the model. For the C kernel the matrix stays unchanged until it is packed.
    """
    if precision.native_kernel:
        return DenseLinear(weight)
    if weight.device.type != "meta" and precision.weight_dtype != precision.compute_dtype:
        return PackedFp16Linear(weight)
    return DenseLinear(weight.to(precision.compute_dtype))
