"""The client against a real server with the demo model."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from musicgen_bento.client import AsyncMusicGenClient, MusicGenClient, Progress
from musicgen_bento.errors import InvalidRequest, UnknownModel
from tests.support.server import Server
from tests.support.wait import wait_until

LONG_SECONDS = 120.0


def test_clip_equals_the_generate_response(server: Server) -> None:
    reports: list[Progress] = []
    client = MusicGenClient(server.url)
    clip = client.generate("calm", seed=3, duration=2, progress=reports.append)
    response = server.generate(prompt="calm", seed=3, duration=2)
    assert clip.audio == response.content
    assert (clip.seed, clip.model, clip.sample_rate, clip.channels, clip.duration) == (3, "demo", 32_000, 1, 2.0)
    states = [report.state for report in reports]
    assert states[-1] == "done"
    assert sorted(states, key=["queued", "loading", "running", "done"].index) == states
    assert reports[-1] == Progress("done", None, 2.0, 2.0)


def test_drawn_seed_reproduces_the_clip(server: Server) -> None:
    client = MusicGenClient(server.url)
    first = client.generate("calm", duration=0.5)
    assert client.generate("calm", duration=0.5, seed=first.seed) == first


def test_list_models_returns_the_catalogue(server: Server) -> None:
    models = MusicGenClient(server.url).list_models()
    assert [model.id for model in models if model.default] == ["demo"]
    assert "facebook/musicgen-small" in [model.id for model in models]


def test_error_responses_become_exceptions(server: Server) -> None:
    client = MusicGenClient(server.url)
    with pytest.raises(UnknownModel) as unknown:
        client.generate("calm", model="no/such")
    assert (unknown.value.code, unknown.value.field, bool(unknown.value.hint)) == ("unknown_model", "model", True)
    with pytest.raises(InvalidRequest) as too_long:
        client.generate("calm", duration=9999)
    assert too_long.value.field == "duration"


def test_exception_in_progress_frees_the_slot(server: Server) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.audio_seconds > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MusicGenClient(server.url).generate("calm", duration=LONG_SECONDS, progress=interrupt)
    wait_until(lambda: server.slots_in_use() == 0)


def test_cancelled_task_frees_its_slot_and_other_tasks_continue(server: Server) -> None:
    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as client:
            started = asyncio.Event()

            def notify(progress: Progress) -> None:
                if progress.state == "running":
                    started.set()

            cancelled = asyncio.create_task(client.generate("calm", duration=LONG_SECONDS, progress=notify))
            await started.wait()
            completed = asyncio.create_task(client.generate("calm", duration=1))
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            assert (await completed).duration == 1.0

    asyncio.run(main())
    wait_until(lambda: server.slots_in_use() == 0)


def test_concurrent_clips_may_exceed_the_default_executor(server: Server) -> None:
    async def main() -> list[int]:
        async with AsyncMusicGenClient(server.url) as client:
            clips = await asyncio.gather(*(client.generate("calm", duration=0.5, seed=seed) for seed in range(12)))
            return [clip.seed for clip in clips]

    assert asyncio.run(main()) == list(range(12))


def test_restarted_server_generates_the_same_clip_again(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        uninterrupted = MusicGenClient(server.url).generate("calm", seed=5, duration=8)

        def restart_server() -> None:
            server.stop()
            server.start()
            server.wait_until_ready()

        restart = threading.Thread(target=restart_server)

        def restart_once(progress: Progress) -> None:
            if progress.audio_seconds > 0 and restart.ident is None:
                restart.start()  # while the client keeps polling

        repeated = MusicGenClient(server.url).generate("calm", seed=5, duration=8, progress=restart_once)
        assert restart.ident
        restart.join()
    assert repeated == uninterrupted


def test_stream_arrives_during_generation_and_equals_the_clip(server: Server) -> None:
    with MusicGenClient(server.url).stream("calm", seed=3, duration=30) as stream:
        first = next(stream)
        assert server.slots_in_use() == 1
        streamed = first + b"".join(stream)
    assert streamed == server.generate(prompt="calm", seed=3, duration=30, normalize="clip").content
    assert stream.position == 30.0


def test_closing_a_stream_frees_the_slot(server: Server) -> None:
    with MusicGenClient(server.url).stream("calm", duration=LONG_SECONDS) as stream:
        next(stream)
    wait_until(lambda: server.slots_in_use() == 0)


def test_cancelling_an_async_stream_frees_the_slot(server: Server) -> None:
    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as client:
            started = asyncio.Event()

            async def read() -> None:
                async with await client.stream("calm", duration=LONG_SECONDS) as stream:
                    async for _ in stream:
                        started.set()

            task = asyncio.create_task(read())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    wait_until(lambda: server.slots_in_use() == 0)
