"""Linear layers of each kind, compared with products in float64."""

from __future__ import annotations

import pytest
import torch

from musicgen_bento.lm.linear import MIN_TRANSPOSED_ELEMENTS, DenseLinear, PackedFp16Linear, make_linear, matmul
from musicgen_bento.precision import BFLOAT16, FLOAT16_WEIGHTS, FLOAT32, Precision
from tests.support.matrices import IN, OUT


@pytest.mark.parametrize(
    ("precision", "kind", "max_error"),
    [(FLOAT32, DenseLinear, 1e-6), (FLOAT16_WEIGHTS, PackedFp16Linear, 1e-3), (BFLOAT16, DenseLinear, 0.02)],
)
def test_products_are_accurate(
    precision: Precision, kind: type, max_error: float, weight: torch.Tensor, rows: torch.Tensor
) -> None:
    linear = make_linear(weight, precision)
    assert isinstance(linear, kind)
    assert (linear.out_features, linear.num_params) == (OUT, OUT * IN)
    expected = rows.double() @ weight.double().T
    product = linear(rows.to(precision.compute_dtype)).double()
    assert product.isfinite().all()
    nonzero = expected.norm(dim=1) > 0
    assert ((product - expected).norm(dim=1)[nonzero] / expected.norm(dim=1)[nonzero]).max() < max_error
    assert (product[~nonzero] == 0).all()
    assert (product[:, 3] == 0).all()


@pytest.mark.parametrize("outputs", [1024, 1028, 1027])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_the_transposed_product_of_large_matrices_is_accurate(outputs: int, count: int) -> None:
    matrix, rows = torch.randn(outputs, 1024), torch.randn(count, 1024)
    assert matrix.numel() > MIN_TRANSPOSED_ELEMENTS
    product = matmul(rows, matrix)
    assert product.is_contiguous()
    torch.testing.assert_close(product, rows @ matrix.T, rtol=1e-5, atol=1e-4)


def test_on_the_meta_device_a_linear_layer_has_only_a_size() -> None:
    linear = make_linear(torch.empty(OUT, IN, device="meta"), FLOAT16_WEIGHTS)
    assert (linear.out_features, linear.num_params) == (OUT, OUT * IN)
