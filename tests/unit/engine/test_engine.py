"""One model's engine, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import Failed, Finished, Started
from tests.support.tiny_models import EventLog, engine, params


def test_prompts_do_not_stop_the_sound_of_those_who_play() -> None:
    """T5 may take longer for a crowd's prompts than a clip has sound ahead: one joins in each step."""
    model, crowd = engine(slots=5), [EventLog() for _ in range(4)]
    player = EventLog()
    model.add_request("player", params(duration=2.0), player)
    model.step()
    for number, story in enumerate(crowd):
        model.add_request(f"crowd-{number}", params(), story)
    for joined in range(1, 5):
        before = position(model)
        model.step()
        assert sum(any(isinstance(event, Started) for event in story.events) for story in crowd) == joined
        assert position(model) == before + 1


def test_what_fails_when_a_clip_ends_does_not_fail_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is broken: clips end with an error, and the thread does not go round for ever."""
    model, stories = engine(), [EventLog(), EventLog()]
    for number, story in enumerate(stories):
        model.add_request(str(number), params(duration=2.0), story)
    model.step()
    model.step()

    def broken(*_: Any) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(model._decoder, "step_and_sample", broken)
    monkeypatch.setattr(model._decoder, "close", broken)
    steps = 0
    while model.step():
        steps += 1
        assert steps < 10
    assert all(isinstance(story.end, Failed) for story in stories)
    assert model._running == []
    later = EventLog()
    model.add_request("later", params(duration=0.2), later)
    model.step()
    assert later.events  # it is heard of


def test_the_first_clip_is_never_refused() -> None:
    """Nobody is there whose end would make room for it."""
    model, first, second = engine(slots=2), EventLog(), EventLog()
    model._room = lambda bytes: False
    model.add_request("first", params(duration=0.4), first)
    model.add_request("second", params(duration=0.4), second)
    model.step()
    assert any(isinstance(event, Started) for event in first.events)
    assert not any(isinstance(event, Started) for event in second.events)
    while model.step():
        pass
    assert isinstance(first.end, Finished)
    assert isinstance(second.end, Finished)


def position(model: Engine) -> int:
    """How far the player is."""
    return next(slot.tokens.position for slot in model._running if slot.request_id == "player")
