"""The line that says what the runner found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from musicgen_bento.config import Settings
from musicgen_bento.device import describe


def test_a_cpu() -> None:
    threads = torch.get_num_threads()
    assert describe(torch.device("cpu"), Settings()) == f"running on cpu ({threads} threads), int8, 16 slots"
    assert ", int8, " in describe(torch.device("cpu"), Settings(default_model="small"))


def test_what_is_set_wins() -> None:
    line = describe(torch.device("cpu"), Settings(precision="float16", max_slots=3))
    assert line.endswith(", float16, 3 slots")


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="Some GPU", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    line = "running on cuda:1 (Some GPU, 80 GiB), float16, 64 slots"
    assert describe(torch.device("cuda:1"), Settings()) == line


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    assert "cuda (which is not there)" in describe(torch.device("cuda"), Settings())
