"""The answer that is sent while its clip is made, around a reader whose every step a test decides."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from musicgen_bento.engine.types import AudioChunk, Finished, Started
from musicgen_bento.errors import GenerationFailed
from musicgen_bento.server import responses
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.request_context import CLIENT_LEFT, RequestContext, ResponseAborted, current_exchange
from musicgen_bento.server.responses import Streamed

SAMPLES = 100_000
STORY = (Started("demo", 32_000, 1, SAMPLES), AudioChunk(np.zeros((1, SAMPLES), np.float32), 0), Finished())


class Reader:
    """One request. `stall` keeps it from taking anything after the head."""

    def __init__(self, method: str = "POST", *, stall: bool = False) -> None:
        self.scope = {"type": "http", "method": method}
        self.gone = asyncio.Event()
        self.messages: list[Any] = []
        self._stall = stall

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self._stall and message["type"] == "http.response.body":
            await asyncio.Event().wait()
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


class Making:
    """Work that goes on until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = False

    async def __call__(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def answer(reader: Reader, recording: PcmBuffer, making: Making) -> RequestContext:
    current = RequestContext(reader.scope["method"], "/stream")
    token = current_exchange.set(current)
    try:
        await Streamed(recording, 7, "wav", making())(reader.scope, reader.receive, reader.send)  # type: ignore[arg-type]
    finally:
        current_exchange.reset(token)
    return current


def told(*events: Any) -> PcmBuffer:
    recording = PcmBuffer("clip")
    for event in events:
        recording.listen(event)
    return recording


def test_all_of_it_and_an_end() -> None:
    async def test() -> None:
        reader, making = Reader(), Making()
        await answer(reader, told(*STORY), making)
        assert len(reader.body) == 44 + 2 * SAMPLES
        assert dict(reader.messages[0]["headers"])[b"content-length"] == str(len(reader.body)).encode()
        assert reader.messages[-1]["more_body"] is False
        assert making.cancelled

    asyncio.run(test())


def test_the_head_alone() -> None:
    async def test() -> None:
        reader = Reader("HEAD")
        await answer(reader, told(*STORY), Making())
        assert (reader.messages[0]["status"], reader.body) == (200, b"")

    asyncio.run(test())


@pytest.mark.parametrize("begun", [True, False])
def test_a_reader_that_leaves_ends_the_work(begun: bool) -> None:
    async def test() -> None:
        reader, making = Reader(), Making()
        work = asyncio.create_task(answer(reader, told(*STORY[:begun]), making))
        await asyncio.sleep(0.01)
        assert not work.done()
        reader.gone.set()
        current = await work
        assert making.cancelled
        assert current.status == CLIENT_LEFT
        assert [message["type"] for message in reader.messages].count("http.response.start") == 1

    asyncio.run(test())


def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.05)

    async def test() -> None:
        making = Making()
        with pytest.raises(ResponseAborted):
            await answer(Reader(stall=True), told(*STORY), making)
        assert making.cancelled

    asyncio.run(test())


def test_a_reader_that_takes_too_little_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece in time, and all of them not."""
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(responses, "SLOWEST", 1e9)

    class Slow(Reader):
        async def send(self, message: Any) -> None:
            await asyncio.sleep(0.15)
            await super().send(message)

    async def test() -> None:
        reader, making = Slow(), Making()
        with pytest.raises(ResponseAborted):
            await answer(reader, told(*STORY), making)
        assert making.cancelled
        assert 0 < len(reader.body) < 2 * SAMPLES

    asyncio.run(test())


def test_a_failure_is_an_answer_before_the_first_byte_and_raised_after_it() -> None:
    async def test() -> None:
        failed = told()
        failed.fail(GenerationFailed("no"))
        reader = Reader()
        current = await answer(reader, failed, Making())
        assert isinstance(current.error, GenerationFailed)
        assert reader.messages[0]["status"] == 500
        half = told(STORY[0])
        half.fail(GenerationFailed("no"))
        reader = Reader()
        with pytest.raises(GenerationFailed):
            await answer(reader, half, Making())
        assert [message.get("more_body", True) for message in reader.messages] == [True, True]

    asyncio.run(test())
