"""Helpers for asyncio tasks: run work until something else happens first, and wake all waiting tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class Stopped(Exception):
    """`run_until` cancelled its work, because the stop condition occurred first."""


async def run_until(
    work: Awaitable[Result], stop: Awaitable[Any], *, let_finish: Callable[[], bool] = lambda: False
) -> Result:
    """Return the result of `work`, or cancel it as soon as `stop` ends. Both have ended when this returns or raises.

    Args:
        work: is cancelled with the caller, too.
        stop: is cancelled when the work ends first.
        let_finish: called when `stop` ends first. If it returns True, the work may run to its end.

    Raises:
        Stopped: `stop` ended first.
    """
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop)
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not working.done() and not let_finish():
            raise Stopped
        return await working
    finally:
        await cancel_and_wait(working, stopping)


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Broadcast:
    """Wakes every task that waits for the next change. It belongs to one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        await self._event.wait()

    def notify(self) -> None:
        """Wake all waiting tasks. Tasks that wait afterwards wait for the next call."""
        event, self._event = self._event, asyncio.Event()
        event.set()
