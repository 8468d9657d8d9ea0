"""The self-test of the built-in model finds a machine that computes wrongly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from musicgen_bento.config import Settings
from musicgen_bento.engine.audio_decoder import AudioDecodeState
from musicgen_bento.engine.engine import Engine
from musicgen_bento.errors import LoadFailed
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.decoder import TokenColumns
from musicgen_bento.model_pool import self_test
from musicgen_bento.model_pool.pool import ModelPool
from tests.support import tiny_models
from tests.support.wait import wait_until


def test_correct_model_passes_and_its_engine_is_idle_afterwards() -> None:
    engine = tiny_models.create_engine()
    self_test.run_self_test(engine)
    assert engine.num_requests == (0, 0)


def test_silence_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    to_chunk = AudioDecodeState.to_chunk
    monkeypatch.setattr(
        AudioDecodeState, "to_chunk", lambda self, wav: to_chunk(self, None if wav is None else 0 * wav)
    )
    with pytest.raises(LoadFailed, match="silent"):
        self_test.run_self_test(tiny_models.create_engine())


def test_seed_without_effect_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    original, drift = CpuDecoder.step_and_sample, iter(range(10_000))

    def sample_with_drift(*args: Any) -> TokenColumns:
        *rest, noise_steps = args
        return original(*rest, [noise_step + next(drift) for noise_step in noise_steps])

    monkeypatch.setattr(CpuDecoder, "step_and_sample", sample_with_drift)
    with pytest.raises(LoadFailed, match="the same seed gives different audio"):
        self_test.run_self_test(tiny_models.create_engine())


def test_prompt_without_effect_is_detected() -> None:
    checkpoint = tiny_models.load(tiny_models.MONO)
    weights_without_prompt = replace(
        checkpoint.weights,
        text_weight=torch.zeros_like(checkpoint.weights.text_weight),
        text_bias=torch.zeros_like(checkpoint.weights.text_bias),
    )
    engine = Engine(replace(checkpoint, weights=weights_without_prompt), max_slots=1, max_queue=1, deterministic=False)
    with pytest.raises(LoadFailed, match="the prompt does not affect"):
        self_test.run_self_test(engine)


def test_server_is_not_ready_if_the_self_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(engine: Engine) -> None:
        raise LoadFailed("The built-in model is silent.")

    monkeypatch.setattr(self_test, "run_self_test", fail)
    pool = ModelPool(Settings())
    try:
        with pytest.raises(LoadFailed, match="silent"):
            wait_until(pool.ready)
    finally:
        pool.close()


def test_only_the_built_in_model_runs_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[str] = []

    def run(engine: Engine, original: Callable[[Engine], None] = self_test.run_self_test) -> None:
        tested.append(engine.checkpoint.name)
        original(engine)

    monkeypatch.setattr(self_test, "run_self_test", run)
    folder = str(tiny_models.folder(tiny_models.MONO))
    pool = ModelPool(Settings(preload=("demo", folder), default_model=folder))
    try:
        wait_until(pool.ready)
    finally:
        pool.close()
    assert tested == ["demo"]
