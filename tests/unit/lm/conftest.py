"""Fixtures of the tests of linear layers."""

from __future__ import annotations

import pytest
import torch

from tests.support.matrices import random_rows, random_weight


@pytest.fixture
def weight() -> torch.Tensor:
    """A weight matrix [OUT, IN]."""
    return random_weight()


@pytest.fixture
def rows() -> torch.Tensor:
    """Rows [ROWS, IN] to multiply with it."""
    return random_rows()
