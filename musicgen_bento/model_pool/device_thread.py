"""The thread that owns a device and steps all engines on it in turn."""

from __future__ import annotations

import threading
from typing import Protocol


class Steppable(Protocol):
    """What the device thread steps: an engine."""

    def step(self) -> bool:
        """Do one step; return whether there was anything to do. Does not raise."""


class DeviceThread:
    """Calls `step` of every engine, one after the other, and sleeps while no engine has work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._engines: tuple[Steppable, ...] = ()
        self._removals: list[threading.Event] = []
        self._work = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="musicgen-device", daemon=True)
        self._thread.start()

    def add(self, engine: Steppable) -> None:
        """Start to step an engine."""
        with self._lock:
            self._engines = (*self._engines, engine)
        self.wake()

    def remove(self, engine: Steppable) -> None:
        """Stop stepping an engine. Blocks until the thread holds no reference to it, so its memory can be freed."""
        released = threading.Event()
        with self._lock:
            self._engines = tuple(other for other in self._engines if other is not engine)
            self._removals.append(released)
        self.wake()
        while not released.wait(0.1) and self._thread.is_alive():
            pass

    def wake(self) -> None:
        """Wake the thread, because an engine may have work."""
        self._work.set()

    def close(self) -> None:
        """Stop the thread after the current step and one more, and wait for them without a limit.

        A thread that returns from the kernel or torch after the interpreter has shut down would crash the process.
        """
        self._closed = True
        self.wake()
        self._thread.join()

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed
            self._work.clear()
            with self._lock:  # between two rounds the thread references no engine
                removals, self._removals = self._removals, []
            for released in removals:
                released.set()
            had_work = [engine.step() for engine in self._engines]
            if not any(had_work) and not self._closed:
                self._work.wait()
