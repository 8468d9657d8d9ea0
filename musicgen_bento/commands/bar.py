"""What a command says on standard error while it works: lines, and on a terminal a bar below them."""

from __future__ import annotations

import sys
import threading

WIDTH = 30


class Bar:
    """Says things; any thread may. In a pipe or a file there is no bar.

    Args:
        quiet: say nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._shown = ""
        self._lock = threading.Lock()

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self._quiet:
            with self._lock:
                self._write(line + "\n")
                self._shown = ""

    def show(self, state: str, position: int | None, audio_seconds: float, duration: float) -> None:
        """How far it is; see clip.Progress."""
        if self._live:
            filled = round(WIDTH * min(1.0, audio_seconds / duration)) if duration else 0
            what = f"queued, {position} of the queue" if state == "queued" and position else state
            with self._lock:
                self._write(f"[{'#' * filled:<{WIDTH}}] {audio_seconds:.1f} of {duration:g} s, {what}")

    def clear(self) -> None:
        """Take the bar away."""
        with self._lock:
            self._write("")

    def _write(self, text: str) -> None:
        """Over what is shown."""
        erase = f"\r{' ' * len(self._shown)}\r" if self._shown else ""
        sys.stderr.write(erase + text)
        sys.stderr.flush()
        self._shown = text if self._live else ""
