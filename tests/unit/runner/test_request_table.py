"""The request table admits requests, keeps their events until they are collected, and aborts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, GenerationParams, Started
from musicgen_bento.errors import QueueFull, Unavailable
from musicgen_bento.runner.metrics import RequestMetrics
from musicgen_bento.runner.protocol import AdmitMsg, FrameDecoder
from musicgen_bento.runner.request_table import RequestTable
from tests.support.fake_pool import EVENTS, FakePool


class RecordedMetrics(RequestMetrics):
    """Records the calls of the request table instead of updating metrics."""

    def __init__(self) -> None:
        super().__init__(dict)
        self.calls: list[tuple[Any, ...]] = []

    def on_admit(self, request_id: str, model: str, admitted_at: float) -> None:
        self.calls.append(("admit", request_id, model))

    def on_event(self, request_id: str, event: Event, reported_at: float) -> None:
        assert reported_at <= time.monotonic()
        self.calls.append((type(event), request_id))

    def on_abort(self, request_id: str) -> None:
        self.calls.append(("abort", request_id))


def make_table(pool: FakePool, **options: Any) -> RequestTable:
    return RequestTable(pool, RecordedMetrics(), **options)


def message(request_id: str = "r") -> AdmitMsg:
    return AdmitMsg(request_id=request_id, model="demo", params=GenerationParams("a secret", 1.0, 0))


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def collect(table: RequestTable, request_id: str) -> list[Event]:
    decoder = FrameDecoder()
    return [event async for part in table.stream(request_id) for event in decoder.feed(part)]


def test_the_events_of_a_request_are_collected_once() -> None:
    async def test() -> None:
        pool = FakePool()
        table = make_table(pool)
        assert table.admit(message()) == {"request_id": "r"}
        pool.report("r", EVENTS)
        assert [type(event) for event in await collect(table, "r")] == [Started, AudioChunk, Finished]
        assert (len(table), pool.aborted) == (0, [])
        [second] = await collect(table, "r")
        assert isinstance(second, Failed)

    run(test())


def test_admitting_an_id_twice_adds_one_request() -> None:
    async def test() -> None:
        pool = FakePool()
        table = make_table(pool)
        assert table.admit(message()) == table.admit(message()) == {"request_id": "r"}
        assert len(pool.callbacks) == 1

    run(test())


def test_an_abort_before_the_admission_refuses_the_request() -> None:
    async def test() -> None:
        pool = FakePool()
        table = make_table(pool)
        table.abort("r")
        assert "error" in table.admit(message())
        assert pool.callbacks == {}

    run(test())


def test_admit_returns_errors_as_data_without_the_text_of_unexpected_ones(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        pool = FakePool()
        table = make_table(pool)
        pool.add_error = QueueFull("full", retry_after=3)
        assert table.admit(message()) == pool.add_error.to_dict()
        pool.add_error = RuntimeError("a secret")
        response = table.admit(message())
        assert response["error"]["code"] == "internal_error"
        assert "secret" not in str(response) + caplog.text
        assert "RuntimeError" in caplog.text
        assert "fake_pool.py" in caplog.text

    caplog.set_level("INFO", "bentoml.musicgen")
    run(test())


def test_a_request_that_is_not_collected_in_time_is_aborted() -> None:
    async def test() -> None:
        pool = FakePool()
        table = make_table(pool, collect_seconds=0.05)
        table.admit(message())
        await asyncio.sleep(0.15)
        assert (len(table), pool.aborted) == (0, ["r"])

    run(test())


@pytest.mark.parametrize("events", [0, 1, 2])
def test_closing_the_stream_early_aborts_the_request(events: int) -> None:
    async def test() -> None:
        pool = FakePool()
        table = make_table(pool)
        table.admit(message())
        pool.report("r", EVENTS[:events])
        reader = asyncio.create_task(collect(table, "r"))
        await asyncio.sleep(0.05)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert (len(table), pool.aborted) == (0, ["r"])

    run(test())


def test_abort_ends_the_stream_and_aborts_in_the_pool() -> None:
    async def test() -> None:
        pool = FakePool()
        table = make_table(pool)
        table.admit(message())
        reader = asyncio.create_task(collect(table, "r"))
        await asyncio.sleep(0.05)
        table.abort("r")
        [last] = await asyncio.wait_for(reader, 1)
        assert isinstance(last, Failed)
        assert isinstance(last.error, Unavailable)
        assert pool.aborted == ["r"]

    run(test())


def test_metrics_get_every_admission_event_and_abort_in_order() -> None:
    """Also the events of requests that are not collected."""

    async def test() -> None:
        pool, metrics = FakePool(), RecordedMetrics()
        table = RequestTable(pool, metrics)
        table.admit(message("a"))
        table.admit(message("b"))
        pool.report("a", EVENTS)
        pool.report("b", EVENTS[:1])
        await asyncio.sleep(0)
        table.abort("b")
        pool.add_error = QueueFull("full")
        table.admit(message("c"))
        assert metrics.calls == [
            ("admit", "a", "demo"),
            ("admit", "b", "demo"),
            *((type(event), "a") for event in EVENTS),
            (Started, "b"),
            ("abort", "b"),
        ]

    run(test())
