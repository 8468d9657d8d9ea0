"""A limit on the memory for finished audio that clients have not read yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from musicgen_bento.errors import ResponseBufferFull

RETRY_AFTER_SECONDS = 10.0


class ResponseBufferLimit:
    """Counts the finished audio of responses in progress. It belongs to one event loop.

    Args:
        limit_bytes: above it no new request is admitted. The audio of requests admitted before may exceed it.

    Attributes:
        bytes: finished audio that is held for clients.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.bytes = 0

    def check(self) -> None:
        """Check the limit before a request is admitted.

        Raises:
            ResponseBufferFull: the limit is exceeded.
        """
        if self.bytes > self._limit_bytes:
            raise ResponseBufferFull(
                "The response buffer is full: clients have not read enough of their finished audio yet.",
                hint="Retry later.",
                retry_after=RETRY_AFTER_SECONDS,
            )

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Count `size` bytes of finished audio while the block runs."""
        self.bytes += size
        try:
            yield
        finally:
            self.bytes -= size
