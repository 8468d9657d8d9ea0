"""What holds for all tests: no network, no reports to anyone, and the markers' meaning."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

WITH_HUB = os.environ.get("MUSICGEN_TEST_HUB") == "1"

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if not WITH_HUB:
    os.environ["HF_HUB_OFFLINE"] = "1"

# A loaded machine is no failure: no deadline.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("hub") and not WITH_HUB:
            item.add_marker(pytest.mark.skip(reason="needs the hub: MUSICGEN_TEST_HUB=1"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
