"""Decoders with batch slots sample the tokens of the eager decoder, and free the slots."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.token_sequence import TokenSequence
from tests.support.decoder_variants import (
    MIXED_REQUESTS,
    SHORT_WINDOW,
    assert_same_tokens,
    cpu_engine,
    cuda_graph_engine,
    eager_engine,
)
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, PREPEND, STEREO, params, run_requests

CreateEngine = Callable[[RandomModelConfig], Engine]


@pytest.fixture(params=[cuda_graph_engine, cpu_engine])
def create_engine(request: pytest.FixtureRequest) -> CreateEngine:
    create: CreateEngine = request.param
    return create


@pytest.mark.parametrize("config", [MONO, STEREO, PREPEND])
def test_tokens_equal_those_of_the_eager_decoder(create_engine: CreateEngine, config: RandomModelConfig) -> None:
    """Requests start, finish and change their slots, in a cache that grows with them and with the longest prompt."""
    expected = run_requests(eager_engine(config), MIXED_REQUESTS)
    assert_same_tokens(run_requests(create_engine(config), MIXED_REQUESTS), expected)


def test_tokens_equal_those_of_the_eager_decoder_beyond_the_window(create_engine: CreateEngine) -> None:
    requests = {str(n): params(duration=2.5, seed=n, cfg_coef=3.0 - n) for n in range(3)}
    expected = run_requests(eager_engine(SHORT_WINDOW), requests)
    assert_same_tokens(run_requests(create_engine(SHORT_WINDOW), requests), expected)


def test_a_request_that_fails_to_start_takes_no_slot(
    create_engine: CreateEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = create_engine(MONO)

    def fail(tokens: TokenSequence) -> None:
        raise RuntimeError("no codec")

    monkeypatch.setattr(engine._audio_decoder, "create_state", fail)
    run_requests(engine, {"one": params(duration=0.2)})
    assert not engine._running
    four_at_once = {"four": params(duration=0.2), **{str(n): params(duration=0.1) for n in range(4)}}
    run_requests(engine, four_at_once)  # would fail if a slot were taken
