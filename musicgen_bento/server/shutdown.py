"""Graceful shutdown: on SIGTERM or SIGINT a process finishes its running work before the HTTP server stops.

An HTTP server stops accepting connections as soon as it gets the signal. BentoML signals the HTTP process and the
runner at the same time, so the runner would stop before the HTTP process has its audio. Therefore each process takes
the signal, waits until its own work is finished or the time is up, and only then passes the signal on.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, TypeVar

from musicgen_bento.errors import ShuttingDown
from musicgen_bento.server.tasks import Stopped, run_until

Result = TypeVar("Result")
POLL_SECONDS = 0.05
FLUSH_SECONDS = 5.0  # to send the errors of aborted work, and again to send finished responses


class InFlight:
    """Counts work that must not be interrupted: `with in_flight:` around it."""

    def __init__(self) -> None:
        self._running = 0

    def __bool__(self) -> bool:
        return self._running > 0

    def __enter__(self) -> None:
        self._running += 1

    def __exit__(self, *_: object) -> None:
        self._running -= 1


class Drain:
    """The graceful shutdown of one server process.

    Args:
        seconds: maximum time for running work to finish.
        is_busy: returns whether work is running.
        idle_seconds: how long the process must have been idle before it stops.

    Attributes:
        started: whether the shutdown has started.
        expired: set when the time is up and work is still running; that work must stop.
    """

    def __init__(self, seconds: float, is_busy: Callable[[], bool], *, idle_seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._is_busy = is_busy
        self._idle_seconds = idle_seconds
        self._handlers: dict[int, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self.started = False
        self.expired = asyncio.Event()

    def install(self) -> None:
        """Replace the server's signal handlers. Call it on the running loop, in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.start, number)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, handle)

    def start(self, number: int = signal.SIGTERM) -> None:
        """Start the shutdown. A keyboard interrupt during the shutdown ends the wait for running work."""
        if not self.started:
            self.started = True
            self._task = asyncio.get_running_loop().create_task(self._run(number))
        elif number == signal.SIGINT and self._handlers:
            self.expired.set()

    async def finish(self, work: Awaitable[Result]) -> Result:
        """Return the result of the work if it ends before the time is up. A cancelled caller cancels the work.

        Raises:
            ShuttingDown: the time is up; the work is cancelled.
        """
        try:
            return await run_until(work, self.expired.wait())
        except Stopped:
            raise ShuttingDown("The server stopped before the clip was finished.") from None

    async def _run(self, number: int) -> None:
        if not await self._wait_idle(self._seconds, self._idle_seconds):
            self.expired.set()
            await self._wait_idle(FLUSH_SECONDS, 0.0)
        handler = self._handlers.get(number)
        if not callable(handler):
            return
        handler(number, None)
        await asyncio.sleep(FLUSH_SECONDS)
        # A client that reads slowly, or not at all, must not keep the process alive. (uvicorn.Server.force_exit)
        server: Any = getattr(handler, "__self__", None)
        if hasattr(server, "force_exit"):
            server.force_exit = True

    async def _wait_idle(self, seconds: float, idle_seconds: float) -> bool:
        """Wait at most `seconds` until the process has been idle for `idle_seconds`, and return whether it has."""
        loop = asyncio.get_running_loop()
        idle_since = loop.time()
        deadline = idle_since + seconds
        while True:
            now = loop.time()
            if self._is_busy():
                idle_since = now + POLL_SECONDS
            elif now - idle_since >= idle_seconds:
                return True
            if (now >= deadline and self._is_busy()) or (self.expired.is_set() and seconds == self._seconds):
                return False
            await asyncio.sleep(POLL_SECONDS)
