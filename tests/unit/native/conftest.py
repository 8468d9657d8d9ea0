"""Fixtures of the tests of the C kernel."""

from __future__ import annotations

from typing import Any

import pytest

from musicgen_bento.native import bindings
from tests.support.kernel_variants import RUNNABLE_VARIANTS


@pytest.fixture(params=RUNNABLE_VARIANTS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Each kernel variant in turn, in place of the fastest."""
    library = bindings.load_library(bindings.FOLDER / f"{request.param}.so")
    monkeypatch.setattr(bindings, "library", lambda: library)
    return library
