"""A random weight matrix, and rows to multiply with it, at many scales, with an output and a row of zeros."""

from __future__ import annotations

import torch

OUT, IN = 96, 256
ROWS = 40


def random_weight() -> torch.Tensor:
    """Create a matrix [OUT, IN] whose outputs have different scales; output 3 is zero."""
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) * IN**-0.5
    weight[3] = 0
    return weight * torch.logspace(-2, 2, OUT)[:, None]


def random_rows() -> torch.Tensor:
    """Create rows [ROWS, IN] of different scales; row 5 is zero."""
    rows = torch.randn(ROWS, IN, generator=torch.Generator().manual_seed(1))
    rows[5] = 0
    return rows * torch.logspace(-3, 3, ROWS)[:, None]
