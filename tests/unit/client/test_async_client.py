"""The asyncio client."""

from __future__ import annotations

import asyncio
import threading

import pytest

from musicgen_bento.client import (
    AsyncMusicGenClient,
    Clip,
    Progress,
)
from tests.support.fake_server import (
    WAV,
    FakeServer,
    Reply,
    job_body,
)
from tests.support.wait import wait_until


def test_async_client_returns_the_clip_and_reports_on_the_event_loop() -> None:
    reports: list[tuple[bool, str]] = []

    async def record(progress: Progress) -> None:
        reports.append((threading.current_thread() is threading.main_thread(), progress.state))

    async def main() -> list[Clip]:
        async with AsyncMusicGenClient(server.url) as client:
            return await asyncio.gather(*(client.generate("calm", seed=seed, progress=record) for seed in (1,)))

    with FakeServer() as server:
        [clip] = asyncio.run(main())
    assert (clip.audio, clip.seed) == (WAV, 1)
    assert reports == [(True, "queued"), (True, "running"), (True, "done")]


def test_cancelled_task_deletes_the_job() -> None:
    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as client:
            task = asyncio.create_task(client.generate("calm"))
            await asyncio.to_thread(wait_until, lambda: "get" in server.calls(), 10)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert server.calls() == ["post", "get", "delete"]

    delayed = Reply(200, job_body("cancelled", 2), delay=1.0)
    with FakeServer(get=[delayed]) as server:
        asyncio.run(main())


def test_task_cancelled_during_submission_deletes_the_job() -> None:
    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.generate("calm"), 0.2)

    with FakeServer(post=[Reply(202, job_body(), delay=0.6)]) as server:
        asyncio.run(main())
        wait_until(lambda: server.calls() == ["post", "delete"], 10)


def test_exception_in_async_progress_deletes_the_job() -> None:
    def interrupt(_: Progress) -> None:
        raise ZeroDivisionError

    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as client:
            with pytest.raises(ZeroDivisionError):
                await client.generate("calm", progress=interrupt)

    with FakeServer(get=[Reply(200, job_body(), delay=0.5)]) as server:
        asyncio.run(main())
        wait_until(lambda: "delete" in server.calls(), 10)


def test_async_stream_yields_the_wav() -> None:
    async def main(server: FakeServer) -> None:
        async with AsyncMusicGenClient(server.url) as client:
            stream = await client.stream("calm", seed=7)
            assert b"".join([chunk async for chunk in stream]) == WAV
            assert (stream.seed, stream.position) == (7, 0.5)

    with FakeServer() as server:
        asyncio.run(main(server))
