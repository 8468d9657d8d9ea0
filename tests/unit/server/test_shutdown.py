"""Graceful shutdown: running work finishes before the HTTP server gets the signal."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from musicgen_bento.server.shutdown import Drain


class FakeServer:
    """The part of uvicorn's server that Drain uses: a signal handler that was installed first."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.force_exit = False

    def handle_exit(self, number: int, frame: Any) -> None:
        self.signals.append(number)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    yield server
    for number, handler in before.items():
        signal.signal(number, handler)


def test_idle_server_gets_the_signal_at_once(server: FakeServer) -> None:
    async def test() -> None:
        drain = Drain(60, lambda: False)
        drain.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert drain.started
        assert (server.signals, drain.expired.is_set()) == ([signal.SIGTERM], False)

    asyncio.run(test())


def test_busy_server_gets_the_signal_when_its_work_is_finished(server: FakeServer) -> None:
    async def test() -> None:
        work = ["a clip"]
        drain = Drain(60, lambda: bool(work))
        drain.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert (drain.started, server.signals) == (True, [])
        work.clear()
        await asyncio.sleep(0.2)
        assert (server.signals, drain.expired.is_set()) == ([signal.SIGTERM], False)

    asyncio.run(test())


def test_expired_is_set_before_the_server_gets_the_signal(server: FakeServer) -> None:
    async def test() -> None:
        drain = Drain(0.2, lambda: not drain.expired.is_set())
        drain.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(drain.expired.wait(), 2)
        await asyncio.sleep(0.2)
        assert server.signals == [signal.SIGTERM]

    asyncio.run(test())


def test_second_interrupt_ends_the_wait_but_sigterm_does_not(server: FakeServer) -> None:
    """On Ctrl-C the terminal sends SIGINT, and BentoML's supervisor sends SIGTERM after it."""

    async def test() -> None:
        drain = Drain(60, lambda: not drain.expired.is_set())
        drain.install()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert (drain.expired.is_set(), server.signals) == (False, [])
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.3)
        assert (drain.expired.is_set(), server.signals) == (True, [signal.SIGINT])

    asyncio.run(test())


def test_server_stays_up_for_idle_seconds_after_its_last_work(server: FakeServer) -> None:
    async def test() -> None:
        drain = Drain(60, lambda: False, idle_seconds=0.5)
        drain.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert server.signals == []
        await asyncio.sleep(0.5)
        assert server.signals == [signal.SIGTERM]

    asyncio.run(test())
