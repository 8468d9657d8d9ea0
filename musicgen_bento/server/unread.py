"""Finished clips on their way to their readers, counted: all slow readers together have a bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from musicgen_bento.errors import ResponseBufferFull

RETRY_AFTER = 10.0


class ResponseBufferLimit:
    """What is finished and still being read, in bytes. It belongs to one event loop.

    Args:
        limit: no new clip is begun above it; those that are being made come on top.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.bytes = 0

    def check(self) -> None:
        """Before a clip is begun.

        Raises:
            UnreadFull: too much is unread.
        """
        if self.bytes > self._limit:
            raise ResponseBufferFull(
                "The memory for finished clips is taken by those that clients are still reading.",
                hint="Ask again later.",
                retry_after=RETRY_AFTER,
            )

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """A finished clip of so many bytes, for as long as the block lasts."""
        self.bytes += size
        try:
            yield
        finally:
            self.bytes -= size
