"""One model's engine, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import Failed, Finished, Started
from tests.support.tiny_models import EventLog, create_engine, params


def has_started(log: EventLog) -> bool:
    return any(isinstance(event, Started) for event in log.events)


def position(engine: Engine, request_id: str) -> int:
    """The position of a running request."""
    request = engine.request_state(request_id)
    assert request is not None
    return request.token_sequence.position


def test_one_waiting_request_starts_per_step_and_running_requests_advance() -> None:
    """T5 may take longer for several prompts than a running request has audio buffered."""
    engine, waiting = create_engine(max_slots=5), [EventLog() for _ in range(4)]
    engine.add_request("running", params(duration=2.0), EventLog())
    engine.step()
    for number, log in enumerate(waiting):
        engine.add_request(f"waiting-{number}", params(), log)
    for started in range(1, 5):
        before = position(engine, "running")
        engine.step()
        assert sum(has_started(log) for log in waiting) == started
        assert position(engine, "running") == before + 1


def test_failing_cleanup_does_not_fail_again_at_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a broken device requests end with an error, and the thread does not loop for ever."""
    engine, logs = create_engine(), [EventLog(), EventLog()]
    for number, log in enumerate(logs):
        engine.add_request(str(number), params(duration=2.0), log)
    engine.step()
    engine.step()

    def fail(*_: Any) -> None:
        raise RuntimeError("device-side assert")

    monkeypatch.setattr(engine._decoder, "step_and_sample", fail)
    monkeypatch.setattr(engine._decoder, "close_sequence", fail)
    steps = 0
    while engine.step():
        steps += 1
        assert steps < 10
    assert all(isinstance(log.end, Failed) for log in logs)
    assert engine.idle
    later = EventLog()
    engine.add_request("later", params(duration=0.2), later)
    engine.step()
    assert later.events


def test_the_first_request_starts_even_if_memory_is_refused() -> None:
    """The request would otherwise wait for ever, because no running request can free memory."""
    engine, first, second = create_engine(max_slots=2), EventLog(), EventLog()
    engine._reserve_memory = lambda num_bytes: False
    engine.add_request("first", params(duration=0.4), first)
    engine.add_request("second", params(duration=0.4), second)
    engine.step()
    assert has_started(first)
    assert not has_started(second)
    while engine.step():
        pass
    assert isinstance(first.end, Finished)
    assert isinstance(second.end, Finished)


def test_request_id_is_in_use_until_its_slot_is_free() -> None:
    """The scheduler would otherwise lose the second request when it frees the slot of the first."""
    engine, log = create_engine(max_slots=1), EventLog()
    engine.add_request("id", params(duration=2.0), EventLog())
    engine.step()
    with pytest.raises(ValueError, match="in use"):
        engine.add_request("id", params(), EventLog())
    engine.abort("id")
    with pytest.raises(ValueError, match="in use"):
        engine.add_request("id", params(), EventLog())
    engine.step()
    engine.add_request("id", params(duration=0.1), log)
    while engine.step():
        pass
    assert isinstance(log.end, Finished)
