"""The time limit of several calls together."""

from __future__ import annotations

import math
import time

from musicgen_bento.client.errors import timed_out
from musicgen_bento.errors import InvalidRequest


class Deadline:
    """The time limit of several calls together, counted from the creation of this object.

    Args:
        seconds: more than 0; None means no limit.

    Raises:
        InvalidRequest: `seconds` is not more than 0.
    """

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise InvalidRequest("timeout must be more than 0 seconds.", hint="None means no limit.", field="timeout")
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float:
        """Return the remaining seconds, more than 0.

        Raises:
            TimedOut: no time remains.
        """
        seconds = self._end - time.monotonic()
        if seconds <= 0:
            raise timed_out()
        return seconds
