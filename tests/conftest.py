"""The environment of all tests (no network, no usage reports), the markers that skip tests, and a server fixture."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.support.server import Server

WITH_HUB = os.environ.get("MUSICGEN_TEST_HUB") == "1"

os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
if not WITH_HUB:
    os.environ["HF_HUB_OFFLINE"] = "1"

# A background job of a shell ignores Ctrl-C, and so would every process that a test starts in one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: an example may take long on a busy machine.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need the Hugging Face Hub or a GPU where there is none."""
    for item in items:
        if item.get_closest_marker("hub") and not WITH_HUB:
            item.add_marker(pytest.mark.skip(reason="needs the Hugging Face Hub: set MUSICGEN_TEST_HUB=1"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the default settings. Modules that need other settings have fixtures of their own."""
    with Server(tmp_path_factory.mktemp("server")) as running:
        yield running
