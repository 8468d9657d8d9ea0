"""Slow readers share a bounded memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from musicgen_bento import schemas
from musicgen_bento.engine.types import EventCallback
from musicgen_bento.server import responses
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.generation import Front
from musicgen_bento.server.request_context import RequestContext, ResponseAborted, current_exchange, exchange
from musicgen_bento.server.shutdown import Drain, InFlight
from musicgen_bento.server.studio import AdmittedRequest, EncodedAudio
from musicgen_bento.server.unread import ResponseBufferLimit
from tests.unit.server.test_responses import SAMPLES, STORY, Reader

ORDER = AdmittedRequest("id", "place", "demo", 7, SAMPLES / 32_000, "clip")


class Yielding(Reader):
    """Takes everything, and lets others have their turn meanwhile."""

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        await super().send(message)


class Studio:
    """Makes a clip at once."""

    async def take(self, request: schemas.GenerationRequest, current: RequestContext) -> AdmittedRequest:
        return ORDER

    async def make(self, order: AdmittedRequest, listen: EventCallback) -> EncodedAudio:
        return EncodedAudio(bytes(2 * SAMPLES), {"X-Seed": "7"})

    async def record(self, order: AdmittedRequest, recording: PcmBuffer) -> None:
        for event in STORY:
            recording.listen(event)


async def ask(front: Front, way: str) -> Any:
    if way == "generate":
        return await front.generate(schemas.GenerationRequest(prompt="calm"))
    return await front.stream(schemas.StreamRequest(prompt="calm"))


@pytest.fixture(autouse=True)
def _exchange() -> Any:
    token = current_exchange.set(RequestContext("POST", "/"))
    yield
    current_exchange.reset(token)


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_too_much_that_nobody_reads_keeps_new_clips_out(way: str) -> None:
    async def test() -> None:
        unread = ResponseBufferLimit(2 * SAMPLES + 1)
        front = Front(None, Studio(), Drain(1.0, InFlight().__bool__), unread)  # type: ignore[arg-type]
        readers = [Reader(stall=True) for _ in range(2)]
        answers = [await ask(front, way) for _ in readers]
        assert [answer.status_code for answer in answers] == [200, 200]
        sending = [
            asyncio.ensure_future(answer(reader.scope, reader.receive, reader.send))
            for answer, reader in zip(answers, readers, strict=True)
        ]
        await asyncio.sleep(0.02)
        assert unread.bytes == 4 * SAMPLES
        for other in ("generate", "stream"):
            full = await ask(front, other)
            assert full.status_code == 429
            error = exchange().error  # the middleware writes it
            assert error is not None
            assert (error.code, error.retry_after) == ("unread_full", 10.0)
        sending[0].cancel()
        await asyncio.wait(sending[:1])
        assert unread.bytes == 2 * SAMPLES
        answer, reader = await ask(front, way), Reader()
        await answer(reader.scope, reader.receive, reader.send)
        assert reader.body.endswith(bytes(2 * SAMPLES))
        sending[1].cancel()
        await asyncio.wait(sending)
        assert unread.bytes == 0

    asyncio.run(test())


def test_a_whole_clip_that_nobody_takes_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.05)

    async def test() -> None:
        unread, reader = ResponseBufferLimit(1), Reader(stall=True)
        answer = responses.Whole(EncodedAudio(bytes(100), {}), unread)
        with pytest.raises(ResponseAborted):
            await answer(reader.scope, reader.receive, reader.send)
        assert unread.bytes == 0

    asyncio.run(test())


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_one_who_takes_all_but_the_end_is_cut_off(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server waits at the end for what it has taken already."""
    monkeypatch.setattr(responses, "STALLED_SECONDS", 0.05)

    class Stalling(Reader):
        async def send(self, message: Any) -> None:
            if message.get("more_body") is False:
                await asyncio.Event().wait()
            await super().send(message)

    async def test() -> None:
        unread, reader = ResponseBufferLimit(1), Stalling()
        answer = await ask(Front(None, Studio(), Drain(1.0, InFlight().__bool__), unread), way)  # type: ignore[arg-type]
        with pytest.raises(ResponseAborted):
            await answer(reader.scope, reader.receive, reader.send)
        assert unread.bytes == 0

    asyncio.run(test())


def test_a_reader_that_leaves_gets_no_more() -> None:
    async def test() -> None:
        unread, reader = ResponseBufferLimit(1), Yielding()
        reader.gone.set()
        answer = responses.Whole(EncodedAudio(bytes(10 * 64 * 1024), {}), unread)
        await answer(reader.scope, reader.receive, reader.send)
        assert len(reader.body) < 10 * 64 * 1024
        assert unread.bytes == 0

    asyncio.run(test())
