"""What holds for all tests: no network, no reports to anyone, the markers' meaning; and a server for those that ask."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.support.matrices import a_weight, some_rows
from tests.support.server import Server

WITH_HUB = os.environ.get("MUSICGEN_TEST_HUB") == "1"

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if not WITH_HUB:
    os.environ["HF_HUB_OFFLINE"] = "1"

# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A loaded machine is no failure: no deadline.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("hub") and not WITH_HUB:
            item.add_marker(pytest.mark.skip(reason="needs the hub: MUSICGEN_TEST_HUB=1"))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the settings as they come; a module that wants others has a fixture of its own."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def weight() -> torch.Tensor:
    """A matrix to be multiplied with."""
    return a_weight()


@pytest.fixture
def rows() -> torch.Tensor:
    """What is multiplied with it."""
    return some_rows()


def _has_gpu() -> bool:
    return torch.cuda.is_available()
