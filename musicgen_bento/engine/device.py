"""The one thread that owns a device and serves the engines on it in turn."""

from __future__ import annotations

import threading
from typing import Protocol


class Stepping(Protocol):
    """What the thread serves."""

    def step(self) -> bool:
        """Do one step; whether there was anything to do. Does not raise."""


class DeviceThread:
    """Calls `step` of every engine, one after the other, and sleeps while none has work."""

    def __init__(self) -> None:
        self._engines: tuple[Stepping, ...] = ()
        self._work = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="musicgen-device", daemon=True)
        self._thread.start()

    def add(self, engine: Stepping) -> None:
        """Serve one more engine."""
        self._engines = (*self._engines, engine)
        self.wake()

    def wake(self) -> None:
        """There may be work."""
        self._work.set()

    def close(self) -> None:
        """Stop after the step that runs and one more."""
        self._closed = True
        self.wake()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed
            self._work.clear()
            stepped = [engine.step() for engine in self._engines]
            if not any(stepped) and not self._closed:
                self._work.wait()
