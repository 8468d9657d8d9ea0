from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from musicgen_bento.engine.types import (
    AudioChunk,
    Event,
    EventCallback,
    Failed,
    Finished,
    GenerationParams,
    ModelStatus,
    Started,
)
from musicgen_bento.errors import QueueFull, Unavailable
from musicgen_bento.runner.protocol import FrameDecoder
from musicgen_bento.runner.request_table import AdmitMsg, RequestTable

STORY: list[Event] = [Started("demo", 32000, 1, 4), AudioChunk(np.zeros((1, 4), np.float32), 0), Finished()]


class Pool:
    """Satisfies the Pool protocol; the test tells the story, from a thread as the real one does."""

    def __init__(self) -> None:
        self.listeners: dict[str, EventCallback] = {}
        self.cancelled: list[str] = []
        self.refusal: Exception | None = None

    def add_request(self, request_id: str, model: str, params: GenerationParams, on_event: EventCallback) -> None:
        if self.refusal:
            raise self.refusal
        self.listeners[request_id] = on_event

    def tell(self, request_id: str, story: list[Event]) -> None:
        thread = threading.Thread(target=lambda: [self.listeners[request_id](event) for event in story])
        thread.start()
        thread.join()

    def abort(self, ticket: str) -> None:
        self.cancelled.append(ticket)

    def ready(self) -> bool:
        return True

    def statuses(self) -> list[ModelStatus]:
        return []

    def close(self, drain_seconds: float = 0.0) -> None:
        pass


def asked(ticket: str = "t") -> AdmitMsg:
    return AdmitMsg(request_id=ticket, model="demo", params=GenerationParams("a secret", 1.0, 0))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def collect(desk: RequestTable, ticket: str) -> list[Event]:
    decoder = FrameDecoder()
    return [event async for piece in desk.stream(ticket) for event in decoder.feed(piece)]


def test_a_clip_is_admitted_and_collected_once() -> None:
    async def test() -> None:
        pool = Pool()
        desk = RequestTable(pool)
        assert desk.admit(asked()) == {"ticket": "t"}
        pool.tell("t", STORY)
        assert [type(event) for event in await collect(desk, "t")] == [Started, AudioChunk, Finished]
        assert (len(desk), pool.cancelled) == (0, [])
        [again] = await collect(desk, "t")
        assert isinstance(again, Failed)

    run(test())


def test_asking_twice_admits_once() -> None:
    async def test() -> None:
        pool = Pool()
        desk = RequestTable(pool)
        assert desk.admit(asked()) == desk.admit(asked()) == {"ticket": "t"}
        assert len(pool.listeners) == 1

    run(test())


def test_a_cancellation_may_overtake_its_admission() -> None:
    async def test() -> None:
        pool = Pool()
        desk = RequestTable(pool)
        desk.abort("t")
        assert "error" in desk.admit(asked())
        assert pool.listeners == {}

    run(test())


def test_a_refusal_comes_back_as_data_and_an_unforeseen_one_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        pool = Pool()
        desk = RequestTable(pool)
        pool.refusal = QueueFull("full", retry_after=3)
        assert desk.admit(asked()) == pool.refusal.to_dict()
        pool.refusal = RuntimeError("a secret")
        answer = desk.admit(asked())
        assert answer["error"]["code"] == "internal_error"
        assert "secret" not in str(answer) + caplog.text
        assert "RuntimeError" in caplog.text
        assert "test_desk.py" in caplog.text

    caplog.set_level("INFO", "bentoml.musicgen")
    run(test())


def test_a_clip_that_nobody_collects_expires() -> None:
    async def test() -> None:
        pool = Pool()
        desk = RequestTable(pool, collect_seconds=0.05)
        desk.admit(asked())
        await asyncio.sleep(0.15)
        assert (len(desk), pool.cancelled) == (0, ["t"])

    run(test())


@pytest.mark.parametrize("events", [0, 1, 2])
def test_a_reader_that_leaves_cancels(events: int) -> None:
    async def test() -> None:
        pool = Pool()
        desk = RequestTable(pool)
        desk.admit(asked())
        pool.tell("t", STORY[:events])
        reader = asyncio.create_task(collect(desk, "t"))
        await asyncio.sleep(0.05)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert (len(desk), pool.cancelled) == (0, ["t"])

    run(test())


def test_cancel_frees_the_place_and_ends_the_stream() -> None:
    async def test() -> None:
        pool = Pool()
        desk = RequestTable(pool)
        desk.admit(asked())
        reader = asyncio.create_task(collect(desk, "t"))
        await asyncio.sleep(0.05)
        desk.abort("t")
        [last] = await asyncio.wait_for(reader, 1)
        assert isinstance(last, Failed)
        assert isinstance(last.error, Unavailable)
        assert pool.cancelled == ["t"]

    run(test())
