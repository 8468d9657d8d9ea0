"""Messages on standard error while a command runs, and on a terminal a progress bar below them.

click.progressbar, which the base install has, is not used: it cannot print a line above the bar, change the bar's text
or total, or shorten the text to the width of the terminal.
"""

from __future__ import annotations

import os
import sys
import threading

from musicgen_bento.clip import Progress
from musicgen_bento.units import format_bytes_of

BAR_COLUMNS = 30
DEFAULT_COLUMNS = 80


class ProgressDisplay:
    """Prints messages and shows progress, from any thread. Without a terminal, only downloads print progress.

    Args:
        quiet: print nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._has_bar = sys.stderr.isatty() and not quiet
        self._shown = ""  # the text of the bar
        self._logged_tenths: dict[str, int] = {}  # by model: tenths of the download that a line reported
        self._lock = threading.Lock()

    def log(self, line: str) -> None:
        """Print a line that stays."""
        if not self._quiet:
            with self._lock:
                self._replace_bar(line + "\n")
                self._shown = ""

    def update(self, progress: Progress) -> None:
        """Show the progress of the clips."""
        state = progress.state
        if state == "queued" and progress.position:
            state = f"queued, position {progress.position}"
        text = f"{progress.audio_seconds:.1f} of {progress.duration:g} s, {state}"
        self._draw(progress.audio_seconds, progress.duration, text)

    def update_download(self, model: str, done_bytes: int, total_bytes: int) -> None:
        """Show the progress of a download; without a terminal, print a line for each tenth."""
        text = format_bytes_of(done_bytes, total_bytes)
        if self._has_bar:
            self._draw(done_bytes, total_bytes, f"{text}, downloading {model}")
        elif (tenth := 10 * done_bytes // total_bytes) > self._logged_tenths.get(model, -1):
            self._logged_tenths[model] = tenth
            self.log(f"{model}: {text}")

    def clear(self) -> None:
        """Erase the bar."""
        with self._lock:
            self._replace_bar("")

    def _draw(self, done: float, total: float, text: str) -> None:
        if not self._has_bar:
            return
        columns = _terminal_columns() - 1  # a line that wraps cannot be erased
        width = max(0, min(BAR_COLUMNS, columns - len(text) - len("[] ")))
        filled = round(width * min(1.0, done / total)) if total else 0
        bar = f"[{'#' * filled:<{width}}] " if width else ""
        with self._lock:
            self._replace_bar(bar + text[:columns])

    def _replace_bar(self, text: str) -> None:
        """Erase the bar and write the text in its place."""
        erase = f"\r{' ' * len(self._shown)}\r" if self._shown else ""
        sys.stderr.write(erase + text)
        sys.stderr.flush()
        self._shown = text if self._has_bar else ""


def _terminal_columns() -> int:
    return os.get_terminal_size(sys.stderr.fileno()).columns or DEFAULT_COLUMNS  # 0 if the terminal has no size set
