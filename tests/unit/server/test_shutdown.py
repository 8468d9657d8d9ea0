from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from musicgen_bento.server.shutdown import Drain


class Server:
    """What uvicorn is to a Drain: a handler that was there first."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self.force_exit = False

    def handle_exit(self, number: int, frame: Any) -> None:
        self.signals.append(number)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    yield server
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_idle_server_is_told_at_once(server: Server) -> None:
    async def test() -> None:
        drain = Drain(60, lambda: False)
        drain.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.2)
        assert drain.started
        assert (server.signals, drain.expired.is_set()) == ([signal.SIGTERM], False)

    asyncio.run(test())


def test_a_busy_one_is_told_when_it_has_finished(server: Server) -> None:
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


def test_when_the_time_is_up_work_is_told_to_stop_first(server: Server) -> None:
    async def test() -> None:
        drain = Drain(0.2, lambda: not drain.expired.is_set())
        drain.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(drain.expired.wait(), 2)
        await asyncio.sleep(0.2)
        assert server.signals == [signal.SIGTERM]

    asyncio.run(test())


def test_the_terminal_and_its_supervisor_both_signal_and_a_second_interrupt_hurries(server: Server) -> None:
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


def test_it_stays_up_for_a_while_after_its_last_work(server: Server) -> None:
    async def test() -> None:
        drain = Drain(60, lambda: False, idle_seconds=0.5)
        drain.install()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert server.signals == []
        await asyncio.sleep(0.5)
        assert server.signals == [signal.SIGTERM]

    asyncio.run(test())
