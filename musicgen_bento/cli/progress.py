"""What a command says on standard error while it works: lines, and on a terminal a bar below them."""

from __future__ import annotations

import os
import sys
import threading

from musicgen_bento.clip import Progress

WIDTH = 30


class ProgressDisplay:
    """Says things; any thread may. In a pipe or a file there is no bar, and a line now and then of a download.

    Args:
        quiet: say nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._shown = ""
        self._tenths: dict[str, int] = {}  # of each download, as told
        self._lock = threading.Lock()

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self._quiet:
            with self._lock:
                self._write(line + "\n")
                self._shown = ""

    def show(self, progress: Progress) -> None:
        """Show how far the clips are."""
        state = progress.state
        if state == "queued" and progress.position:
            state = f"queued, {progress.position} of the queue"
        text = f"{progress.audio_seconds:.1f} of {progress.duration:g} s, {state}"
        self._draw(progress.audio_seconds, progress.duration, text)

    def fetch(self, model: str, done: int, total: int) -> None:
        """How many bytes of a model's have come."""
        text = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB"
        if self._live:
            self._draw(done, total, f"{text}, downloading {model}")
        elif (tenth := 10 * done // total) > self._tenths.get(model, -1):
            self._tenths[model] = tenth
            self.say(f"{model}: {text}")

    def clear(self) -> None:
        """Take the bar away."""
        with self._lock:
            self._write("")

    def _draw(self, done: float, total: float, text: str) -> None:
        if self._live:
            columns = _columns() - 1  # a line that wraps cannot be taken back
            width = max(0, min(WIDTH, columns - len(text) - len("[] ")))
            filled = round(width * min(1.0, done / total)) if total else 0
            with self._lock:
                self._write((f"[{'#' * filled:<{width}}] " if width else "") + text[:columns])

    def _write(self, text: str) -> None:
        """Over what is shown."""
        erase = f"\r{' ' * len(self._shown)}\r" if self._shown else ""
        sys.stderr.write(erase + text)
        sys.stderr.flush()
        self._shown = text if self._live else ""


def _columns() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80  # 0 where nobody has said how wide it is
