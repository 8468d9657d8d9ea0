"""Waiting for other threads and processes."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout_seconds: float = 60) -> float:
    """Wait until the condition is true, and return the seconds that took; fail after the timeout."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_seconds, "the condition did not become true in time"
        time.sleep(0.02)
    return time.monotonic() - start
