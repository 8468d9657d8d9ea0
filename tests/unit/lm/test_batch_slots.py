"""What decoders with seats have in common: the tokens of the one without, and nobody left sitting."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.token_sequence import TokenSequence
from tests.support.decoder_variants import COMPANY, SHORT_WINDOW, assert_same, graphed, packed, plain
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, PREPEND, STEREO, params, run_requests

Maker = Callable[[RandomModelConfig], Engine]


@pytest.fixture(params=[graphed, packed])
def seated(request: pytest.FixtureRequest) -> Maker:
    maker: Maker = request.param
    return maker


@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_the_tokens_of_the_plain_decoder(seated: Maker, recipe: RandomModelConfig) -> None:
    """Clips that join, leave and move up, in room that grows with them and with the longest prompt."""
    assert_same(run_requests(seated(recipe), COMPANY), run_requests(plain(recipe), COMPANY))


def test_past_the_window(seated: Maker) -> None:
    requests = {str(n): params(duration=2.5, seed=n, cfg_coef=3.0 - n) for n in range(3)}
    assert_same(run_requests(seated(SHORT_WINDOW), requests), run_requests(plain(SHORT_WINDOW), requests))


def test_a_clip_that_cannot_be_begun_has_no_seat(seated: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    model = seated(MONO)

    def broken(clip: TokenSequence) -> None:
        raise RuntimeError("no codec")

    monkeypatch.setattr(model._audio_decoder, "open", broken)
    run_requests(model, {"one": params(duration=0.2)})
    assert not model._running
    run_requests(
        model, {"four": params(duration=0.2), **{str(n): params(duration=0.1) for n in range(4)}}
    )  # more would not go
