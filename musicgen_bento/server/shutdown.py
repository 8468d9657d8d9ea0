"""SIGTERM and SIGINT, taken before the HTTP server gets them, so that running work is finished first.

A server that is told to stop closes its door at once; the front and the runner are told at the same
moment, so the runner would be gone before the front has its audio. Here each of them waits until its own
work is done, or until the time is up, and only then passes the signal on.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, TypeVar

from musicgen_bento.errors import ShuttingDown

Result = TypeVar("Result")
STEP = 0.05
FLUSH_SECONDS = 5.0  # seconds: to tell the clients whose work was cut off, and again to send what is finished


class InFlight:
    """What must not be cut off: `with work:` around it."""

    def __init__(self) -> None:
        self._running = 0

    def __bool__(self) -> bool:
        return self._running > 0

    def __enter__(self) -> None:
        self._running += 1

    def __exit__(self, *_: object) -> None:
        self._running -= 1


class Drain:
    """The way out of one server process.

    Args:
        seconds: how long running work may take to finish.
        busy: whether there is any.
        idle_seconds: how long there must have been none.
    """

    def __init__(self, seconds: float, busy: Callable[[], bool], *, idle_seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._busy = busy
        self._idle_seconds = idle_seconds
        self._handlers: dict[int, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self.started = False
        self.expired = asyncio.Event()
        """Set when the time is up with work still running: whoever does it must stop."""

    def install(self) -> None:
        """Take the signals over from the server. Call it on the running loop, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.begin, number)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, handle)

    def begin(self, number: int = signal.SIGTERM) -> None:
        """Start to drain; an interrupt from the keyboard while it lasts ends it now."""
        if not self.started:
            self.started = True
            self._task = asyncio.get_running_loop().create_task(self._run(number))
        elif number == signal.SIGINT and self._handlers:
            self.expired.set()

    async def finish(self, work: Awaitable[Result]) -> Result:
        """The work's result, if it has one before the time is up. If the caller is cancelled, so is the work.

        Raises:
            ShuttingDown: the time is up; the work is cancelled.
        """
        working, expired = asyncio.ensure_future(work), asyncio.ensure_future(self.expired.wait())
        try:
            await asyncio.wait((working, expired), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ShuttingDown(
                "The server stopped before the clip was finished.", hint="Try again later.", retry_after=5
            )
        finally:
            await cancel(working, expired)

    async def _run(self, number: int) -> None:
        if not await self._quiet(self._seconds, self._idle_seconds):
            self.expired.set()
            await self._quiet(FLUSH_SECONDS, 0.0)
        handler = self._handlers.get(number)
        if not callable(handler):
            return
        handler(number, None)
        await asyncio.sleep(FLUSH_SECONDS)
        # A client that reads slowly, or not at all, must not hold the process for ever. (uvicorn.Server.force_exit)
        server: Any = getattr(handler, "__self__", None)
        if hasattr(server, "force_exit"):
            server.force_exit = True

    async def _quiet(self, seconds: float, idle_seconds: float) -> bool:
        """Whether there is nothing to do any more, waiting so long for it."""
        loop = asyncio.get_running_loop()
        idle_since = loop.time()
        deadline = idle_since + seconds
        while True:
            now = loop.time()
            if self._busy():
                idle_since = now + STEP
            elif now - idle_since >= idle_seconds:
                return True
            if (now >= deadline and self._busy()) or (self.expired.is_set() and seconds == self._seconds):
                return False
            await asyncio.sleep(STEP)


async def cancel(*tasks: asyncio.Future[Any]) -> None:
    """Cancel them and wait until they have cleared up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
