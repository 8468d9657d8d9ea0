"""The log line that describes the device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from musicgen_bento.config import Settings
from musicgen_bento.device import describe


def test_a_cpu_is_described() -> None:
    threads = torch.get_num_threads()
    assert describe(torch.device("cpu"), Settings()) == f"running on cpu ({threads} threads), int8, 16 slots"
    assert ", int8, " in describe(torch.device("cpu"), Settings(default_model="small"))


def test_settings_override_the_defaults_of_the_device() -> None:
    line = describe(torch.device("cpu"), Settings(precision="float16", max_slots=3))
    assert line.endswith(", float16, 3 slots")


def test_a_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Some GPU", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    line = "running on cuda:1 (Some GPU, 80 GiB), float16, 64 slots"
    assert describe(torch.device("cuda:1"), Settings()) == line


def test_a_missing_gpu_is_described_as_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    assert "cuda (not available)" in describe(torch.device("cuda"), Settings())
