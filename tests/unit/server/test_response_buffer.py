"""Slow readers share a bounded memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from musicgen_bento import schemas
from musicgen_bento.engine.types import Listener
from musicgen_bento.server import responses
from musicgen_bento.server.audio_buffer import Recording
from musicgen_bento.server.generation import Front
from musicgen_bento.server.request_context import Broken, Exchange, current_exchange, exchange
from musicgen_bento.server.shutdown import Drain, Work
from musicgen_bento.server.studio import Music, Order
from musicgen_bento.server.unread import Unread
from tests.unit.server.test_responses import SAMPLES, STORY, Reader

ORDER = Order("id", "place", "demo", 7, SAMPLES / 32_000, "clip")


class Yielding(Reader):
    """Takes everything, and lets others have their turn meanwhile."""

    async def send(self, message: Any) -> None:
        await asyncio.sleep(0)
        await super().send(message)


class Studio:
    """Makes a clip at once."""

    async def take(self, request: schemas.GenerationRequest, current: Exchange) -> Order:
        return ORDER

    async def make(self, order: Order, listen: Listener) -> Music:
        return Music(bytes(2 * SAMPLES), {"X-Seed": "7"})

    async def record(self, order: Order, recording: Recording) -> None:
        for event in STORY:
            recording.listen(event)


async def ask(front: Front, way: str) -> Any:
    if way == "generate":
        return await front.generate(schemas.GenerationRequest(prompt="calm"))
    return await front.stream(schemas.StreamRequest(prompt="calm"))


@pytest.fixture(autouse=True)
def _exchange() -> Any:
    token = current_exchange.set(Exchange("POST", "/"))
    yield
    current_exchange.reset(token)


@pytest.mark.parametrize("way", ["generate", "stream"])
def test_too_much_that_nobody_reads_keeps_new_clips_out(way: str) -> None:
    async def test() -> None:
        unread = Unread(2 * SAMPLES + 1)
        front = Front(None, Studio(), Drain(1.0, Work().__bool__), unread)  # type: ignore[arg-type]
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
        unread, reader = Unread(1), Reader(stall=True)
        answer = responses.Whole(Music(bytes(100), {}), unread)
        with pytest.raises(Broken):
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
        unread, reader = Unread(1), Stalling()
        answer = await ask(Front(None, Studio(), Drain(1.0, Work().__bool__), unread), way)  # type: ignore[arg-type]
        with pytest.raises(Broken):
            await answer(reader.scope, reader.receive, reader.send)
        assert unread.bytes == 0

    asyncio.run(test())


def test_a_reader_that_leaves_gets_no_more() -> None:
    async def test() -> None:
        unread, reader = Unread(1), Yielding()
        reader.gone.set()
        answer = responses.Whole(Music(bytes(10 * 64 * 1024), {}), unread)
        await answer(reader.scope, reader.receive, reader.send)
        assert len(reader.body) < 10 * 64 * 1024
        assert unread.bytes == 0

    asyncio.run(test())
