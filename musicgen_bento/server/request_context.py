"""The HTTP request that a task handles: its id, and what its log line reports."""

from __future__ import annotations

import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from musicgen_bento.errors import MusicGenError

CLIENT_DISCONNECTED = 499  # nginx's status for a client that closed the connection; it is only logged
MAX_METHOD_CHARACTERS = 7


@dataclass
class RequestContext:
    """One HTTP request and its response. Handlers fill in what the log line reports.

    Attributes:
        id: 8 hexadecimal digits, sent as X-Request-Id and logged.
        started_at: in seconds of the monotonic clock.
        status: status of the response; 0 before it is known.
        error: the error that the response carries.
        model: the requested model.
        duration: the requested duration in seconds.
    """

    method: str
    path: str
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    started_at: float = field(default_factory=time.monotonic)
    status: int = 0
    error: MusicGenError | None = None
    model: str | None = None
    duration: float | None = None

    def log_line(self) -> str:
        """Return the line that is logged when the response has ended."""
        model = f" model={self.model}" if self.model else ""
        duration = f" duration={self.duration:g}" if self.duration is not None else ""
        code = f" code={self.error.code}" if self.error else ""
        seconds = time.monotonic() - self.started_at
        method = self.method if self.method.isalpha() and len(self.method) <= MAX_METHOD_CHARACTERS else "?"
        return f"id={self.id} {method} {self.path}{model}{duration} seconds={seconds:.3f} status={self.status}{code}"


current_request_var: ContextVar[RequestContext | None] = ContextVar("musicgen_current_request", default=None)


def current_request() -> RequestContext:
    """Return the context of the HTTP request that the running task handles, or an empty one outside a request."""
    return current_request_var.get() or RequestContext("", "")
