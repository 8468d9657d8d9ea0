"""The asyncio helpers: work is cancelled by its stop condition, and a broadcast wakes every waiting task."""

from __future__ import annotations

import asyncio

import pytest

from musicgen_bento.server.tasks import Broadcast, Stopped, run_until


async def work_until(event: asyncio.Event, log: list[str]) -> str:
    try:
        await event.wait()
    except asyncio.CancelledError:
        log.append("cancelled")
        raise
    return "result"


@pytest.mark.parametrize(
    ("end", "let_finish", "expected"),
    [("work", False, "result"), ("stop", False, "stopped"), ("both", False, "result"), ("stop", True, "result")],
)
def test_run_until_returns_the_result_or_cancels_the_work(end: str, let_finish: bool, expected: str) -> None:
    async def test() -> None:
        log: list[str] = []
        finish, stop = asyncio.Event(), asyncio.Event()
        running = asyncio.ensure_future(run_until(work_until(finish, log), stop.wait(), let_finish=lambda: let_finish))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if end in ("work", "both"):
            finish.set()
        if end in ("stop", "both"):
            stop.set()
        if let_finish:
            asyncio.get_running_loop().call_later(0.02, finish.set)
        if expected == "stopped":
            with pytest.raises(Stopped):
                await running
            assert log == ["cancelled"]
        else:
            assert await running == expected
            assert log == []

    asyncio.run(test())


def test_run_until_cancels_the_work_with_its_caller() -> None:
    async def test() -> None:
        log: list[str] = []
        running = asyncio.ensure_future(run_until(work_until(asyncio.Event(), log), asyncio.Event().wait()))
        await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert log == ["cancelled"]

    asyncio.run(test())


def test_broadcast_wakes_all_waiting_tasks_once() -> None:
    async def test() -> None:
        changed = Broadcast()
        waiting = [asyncio.ensure_future(changed.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        changed.notify()
        await asyncio.wait_for(asyncio.gather(*waiting), 1)
        later = asyncio.ensure_future(changed.wait())
        await asyncio.sleep(0.01)
        assert not later.done()
        later.cancel()

    asyncio.run(test())
