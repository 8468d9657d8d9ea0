"""What the built-in model's start finds wrong with a machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from musicgen_bento.config import Settings
from musicgen_bento.engine.audio_decoder import AudioDecodeState
from musicgen_bento.engine.engine import Engine
from musicgen_bento.errors import LoadFailed
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.model_pool import self_test
from musicgen_bento.model_pool.pool import ModelPool
from tests.support import tiny_models
from tests.support.wait import wait_until


def test_a_model_that_works_passes_and_is_left_as_it_was() -> None:
    engine = tiny_models.create_engine()
    self_test.run_self_test(engine)
    assert engine.num_requests == (0, 0)


def test_silence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = AudioDecodeState.to_chunk
    monkeypatch.setattr(AudioDecodeState, "chunk", lambda self, wav: plain(self, None if wav is None else 0 * wav))
    with pytest.raises(LoadFailed, match="silent"):
        self_test.run_self_test(tiny_models.create_engine())


def test_a_seed_that_means_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, drift = CpuDecoder.step_and_sample, iter(range(10_000))
    monkeypatch.setattr(CpuDecoder, "step_and_sample", lambda *rest: plain(*rest[:-1], [key + next(drift) for key in rest[-1]]))
    with pytest.raises(LoadFailed, match="another clip for the same seed"):
        self_test.run_self_test(tiny_models.create_engine())


def test_a_prompt_that_is_not_heard_is_found() -> None:
    checkpoint = tiny_models.load(tiny_models.MONO)
    deaf = replace(
        checkpoint.weights,
        text_weight=torch.zeros_like(checkpoint.weights.text_weight),
        text_bias=torch.zeros_like(checkpoint.weights.text_bias),
    )
    engine = Engine(replace(checkpoint, weights=deaf), max_slots=1, max_queue=1, deterministic=False)
    with pytest.raises(LoadFailed, match="does not hear"):
        self_test.run_self_test(engine)


def test_a_server_whose_built_in_model_fails_it_does_not_get_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(engine: Engine) -> None:
        raise LoadFailed("The built-in model is silent.")

    monkeypatch.setattr(self_test, "run_self_test", fails)
    pool = ModelPool(Settings())
    try:
        with pytest.raises(LoadFailed, match="silent"):
            wait_until(pool.ready)
    finally:
        pool.close()


def test_the_built_in_model_passes_and_another_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def check(engine: Engine, plain: Callable[[Engine], None] = self_test.run_self_test) -> None:
        heard.append(engine.checkpoint.name)
        plain(engine)

    monkeypatch.setattr(self_test, "run_self_test", check)
    folder = str(tiny_models.folder(tiny_models.MONO))
    pool = ModelPool(Settings(preload=("demo", folder), default_model=folder))
    try:
        wait_until(pool.ready)
    finally:
        pool.close()
    assert heard == ["demo"]
