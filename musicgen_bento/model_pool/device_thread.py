"""The one thread that owns a device and serves the engines on it in turn."""

from __future__ import annotations

import threading
from typing import Protocol


class Steppable(Protocol):
    """What the thread serves."""

    def step(self) -> bool:
        """Do one step; whether there was anything to do. Does not raise."""


class DeviceThread:
    """Calls `step` of every engine, one after the other, and sleeps while none has work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: tuple[Steppable, ...] = ()
        self._removed: list[threading.Event] = []
        self._work = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="musicgen-device", daemon=True)
        self._thread.start()

    def add(self, engine: Steppable) -> None:
        """Serve one more engine."""
        with self._lock:
            self._engines = (*self._engines, engine)
        self.wake()

    def remove(self, engine: Steppable) -> None:
        """Serve an engine no more. Waits until the thread has let go of it, so that its memory is free with it."""
        released = threading.Event()
        with self._lock:
            self._engines = tuple(each for each in self._engines if each is not engine)
            self._removed.append(released)
        self.wake()
        while not released.wait(0.1) and self._thread.is_alive():
            pass

    def wake(self) -> None:
        """There may be work."""
        self._work.set()

    def close(self) -> None:
        """Stop after the step that runs and one more, and wait for them.

        However long they take: the thread must not come back from the kernel or torch to an interpreter that is gone.
        """
        self._closed = True
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed
            self._work.clear()
            with self._lock:  # between two rounds the thread has no engine in its hands
                removed, self._removed = self._removed, []
            for each in removed:
                each.set()
            stepped = [engine.step() for engine in self._engines]
            if not any(stepped) and not self._closed:
                self._work.wait()
