"""Matrices as torch holds them: how near the products are."""

from __future__ import annotations

import pytest
import torch

from musicgen_bento.lm.linear import LARGE, DenseLinear, PackedFp16Linear, make_linear, matmul
from musicgen_bento.precision import BFLOAT16, FLOAT16_WEIGHTS, FLOAT32, Precision
from tests.support.matrices import IN, OUT


@pytest.mark.parametrize(
    ("precision", "kind", "error"),
    [(FLOAT32, DenseLinear, 1e-6), (FLOAT16_WEIGHTS, PackedFp16Linear, 1e-3), (BFLOAT16, DenseLinear, 0.02)],
)
def test_nearly_the_same(
    precision: Precision, kind: type, error: float, weight: torch.Tensor, rows: torch.Tensor
) -> None:
    held = make_linear(weight, precision)
    assert isinstance(held, kind)
    assert (held.out_features, held.num_params) == (OUT, OUT * IN)
    wanted, made = rows.double() @ weight.double().T, held(rows.to(precision.compute_dtype)).double()
    assert made.isfinite().all()
    there = wanted.norm(dim=1) > 0
    assert ((made - wanted).norm(dim=1)[there] / wanted.norm(dim=1)[there]).max() < error
    assert (made[~there] == 0).all()
    assert (made[:, 3] == 0).all()


@pytest.mark.parametrize("outputs", [1024, 1028, 1027])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_large_matrices_the_other_way_round(outputs: int, count: int) -> None:
    matrix, rows = torch.randn(outputs, 1024), torch.randn(count, 1024)
    assert matrix.numel() > LARGE
    made = matmul(rows, matrix)
    assert made.is_contiguous()
    torch.testing.assert_close(made, rows @ matrix.T, rtol=1e-5, atol=1e-4)


def test_on_the_meta_device_a_matrix_is_a_size() -> None:
    held = make_linear(torch.empty(OUT, IN, device="meta"), FLOAT16_WEIGHTS)
    assert (held.out_features, held.num_params) == (OUT, OUT * IN)
