"""The client against the real service with the real `demo`."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from musicgen_bento.client import AsyncMusicGenClient, MusicGenClient, Progress
from musicgen_bento.errors import InvalidRequest, UnknownModel
from tests.support.server import Server
from tests.support.wait import wait_until

LONG = 120.0


def test_a_clip_is_the_one_that_generate_gives(server: Server) -> None:
    reports: list[Progress] = []
    client = MusicGenClient(server.url)
    clip = client.generate("calm", seed=3, duration=2, progress=reports.append)
    answer = server.generate(prompt="calm", seed=3, duration=2)
    assert clip.audio == answer.content
    assert (clip.seed, clip.model, clip.sample_rate, clip.channels, clip.duration) == (3, "demo", 32_000, 1, 2.0)
    states = [report.state for report in reports]
    assert states[-1] == "done"
    assert sorted(states, key=["queued", "loading", "running", "done"].index) == states
    assert reports[-1] == Progress("done", None, 2.0, 2.0)


def test_a_drawn_seed_makes_the_clip_again(server: Server) -> None:
    client = MusicGenClient(server.url)
    first = client.generate("calm", duration=0.5)
    assert client.generate("calm", duration=0.5, seed=first.seed) == first


def test_the_models_are_listed(server: Server) -> None:
    models = MusicGenClient(server.url).list_models()
    assert [model.id for model in models if model.default] == ["demo"]
    assert "facebook/musicgen-small" in [model.id for model in models]


def test_the_servers_errors_are_typed(server: Server) -> None:
    client = MusicGenClient(server.url)
    with pytest.raises(UnknownModel) as unknown:
        client.generate("calm", model="no/such")
    assert (unknown.value.code, unknown.value.field, bool(unknown.value.hint)) == ("unknown_model", "model", True)
    with pytest.raises(InvalidRequest) as long:
        client.generate("calm", duration=9999)
    assert long.value.field == "duration"


def test_whoever_leaves_frees_the_slot(server: Server) -> None:
    def leave(progress: Progress) -> None:
        if progress.audio_seconds > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MusicGenClient(server.url).generate("calm", duration=LONG, progress=leave)
    wait_until(lambda: server.slots_in_use() == 0)


def test_a_cancelled_task_frees_the_slot_while_others_go_on(server: Server) -> None:
    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as client:
            begun = asyncio.Event()

            def tell(progress: Progress) -> None:
                if progress.state == "running":
                    begun.set()

            long = asyncio.create_task(client.generate("calm", duration=LONG, progress=tell))
            await begun.wait()
            short = asyncio.create_task(client.generate("calm", duration=1))
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            assert (await short).duration == 1.0

    asyncio.run(main())
    wait_until(lambda: server.slots_in_use() == 0)


def test_more_at_once_than_the_default_executor_has_threads(server: Server) -> None:
    async def main() -> list[int]:
        async with AsyncMusicGenClient(server.url) as client:
            clips = await asyncio.gather(*(client.generate("calm", duration=0.5, seed=seed) for seed in range(12)))
            return [clip.seed for clip in clips]

    assert asyncio.run(main()) == list(range(12))


def test_a_server_that_is_started_again_makes_the_clip_again(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        alone = MusicGenClient(server.url).generate("calm", seed=5, duration=8)

        def start_again() -> None:
            server.stop()
            server.start()
            server.wait_until_ready()

        other = threading.Thread(target=start_again)

        def kill(progress: Progress) -> None:
            if progress.audio_seconds > 0 and other.ident is None:
                other.start()  # and this client goes on asking

        again = MusicGenClient(server.url).generate("calm", seed=5, duration=8, progress=kill)
        assert other.ident
        other.join()
    assert again == alone


def test_a_stream_is_the_clip_and_comes_while_it_is_made(server: Server) -> None:
    with MusicGenClient(server.url).stream("calm", seed=3, duration=30) as stream:
        first = next(stream)
        assert server.slots_in_use() == 1
        streamed = first + b"".join(stream)
    assert streamed == server.generate(prompt="calm", seed=3, duration=30, normalize="clip").content
    assert stream.position == 30.0


def test_a_stream_that_is_left_frees_the_slot(server: Server) -> None:
    with MusicGenClient(server.url).stream("calm", duration=LONG) as stream:
        next(stream)
    wait_until(lambda: server.slots_in_use() == 0)


def test_an_asynchronous_stream_that_is_cancelled_frees_the_slot(server: Server) -> None:
    async def main() -> None:
        async with AsyncMusicGenClient(server.url) as client:
            begun = asyncio.Event()

            async def read() -> None:
                async with await client.stream("calm", duration=LONG) as stream:
                    async for _ in stream:
                        begun.set()

            task = asyncio.create_task(read())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    wait_until(lambda: server.slots_in_use() == 0)
