"""A matrix and rows for it, at many scales, with an output and a row of zeros."""

from __future__ import annotations

import torch

OUT, IN = 96, 256


def a_weight() -> torch.Tensor:
    """[OUT, IN]; output 3 is reached by nothing."""
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(0)) * IN**-0.5
    weight[3] = 0
    return weight * torch.logspace(-2, 2, OUT)[:, None]  # each output at a scale of its own


def some_rows() -> torch.Tensor:
    """[40, IN]; row 5 is silent."""
    rows = torch.randn(40, IN, generator=torch.Generator().manual_seed(1))
    rows[5] = 0
    return rows * torch.logspace(-3, 3, 40)[:, None]
