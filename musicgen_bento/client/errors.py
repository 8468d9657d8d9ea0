"""The errors that the client itself raises, and the mapping of failed calls and error responses to exceptions.

The server's own errors are the classes of `musicgen_bento.errors`. The errors below have the status 0, because no
response of the server carries them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

from musicgen_bento.errors import MusicGenError, QueueFull, Unavailable
from musicgen_bento.schemas import ErrorBody

if TYPE_CHECKING:
    import requests

GATEWAY_RETRY_SECONDS = 1.0  # the wait after a proxy's 502, 503 or 504 without Retry-After


class Unreachable(MusicGenError):
    """No complete response arrived: no server listens at the URL, or the connection to it was lost."""

    status, code = 0, "unreachable"


class ServerRestarting(Unreachable):
    """A server that has responded before refuses connections now; it may be restarting."""


class TimedOut(MusicGenError):
    """The caller's timeout expired."""

    status, code = 0, "timed_out"


class InvalidResponse(MusicGenError):
    """The response does not follow this service's API."""

    status, code = 0, "invalid_response"


class StreamTruncated(MusicGenError):
    """An audio stream ended early; the bytes received are only a part of the clip."""

    status, code = 0, "stream_truncated"


class Cancelled(MusicGenError):
    """The caller cancelled the clip."""

    status, code = 0, "cancelled"


def timed_out() -> TimedOut:
    """Return the error for an expired timeout."""
    return TimedOut("The response did not arrive within the timeout.", hint="Use a longer timeout, or none.")


def invalid_response() -> InvalidResponse:
    """Return the error for a response that does not follow the API."""
    return InvalidResponse(
        "The response could not be read.", hint="Is the URL that of a musicgen-bento server of this version?"
    )


def cancelled() -> Cancelled:
    """Return the error for a call that the caller cancelled."""
    return Cancelled("The clip was cancelled.")


def is_retryable(error: MusicGenError) -> bool:
    """Whether a retry of the same request may succeed: such an error carries the seconds to wait."""
    return error.retry_after is not None


def error_from_requests(error: requests.RequestException, url: str, has_responded: bool) -> Unreachable:
    """Return our error for an exception of requests; a temporary one carries the seconds to wait.

    Args:
        error: the exception.
        url: the server's URL for the message.
        has_responded: whether the server has responded before: then a refused connection means a restart.
    """
    from requests import exceptions

    if isinstance(error, exceptions.SSLError):
        hint = "Does the server use https, with a valid certificate?"
        return Unreachable(f"The TLS connection to {url} failed.", hint=hint)
    if isinstance(error, exceptions.ConnectTimeout) or _is_refused(error):
        if has_responded:
            message = f"The server at {url} no longer accepts connections."
            return ServerRestarting(message, hint="Retry later.", retry_after=1.0)
        return Unreachable(f"There is no server at {url}.", hint="Is the server running?")
    if isinstance(error, exceptions.Timeout):
        return Unreachable(f"The server at {url} does not respond.", hint="Retry later.", retry_after=1.0)
    is_lost = isinstance(error, exceptions.ConnectionError | exceptions.ChunkedEncodingError)
    message = f"The connection to {url} was lost."
    return Unreachable(message, hint="Retry the call.", retry_after=0.5 if is_lost else None)


def _is_refused(error: Exception) -> bool:
    """Whether no connection was established: nothing listens at the address, or the host name is unknown."""
    from urllib3.exceptions import NewConnectionError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, NewConnectionError)


def error_from_response(status: int, headers: Mapping[str, str], body: bytes) -> MusicGenError:
    """Return the exception for a response of status 300 or more.

    The body of this service's errors names the error. Any other body comes from a proxy or another service; then the
    status selects the exception.
    """
    try:
        error = MusicGenError.from_dict(ErrorBody.model_validate_json(body).model_dump())
    except ValidationError:
        error = _error_from_status(status, headers)
    if status in (429, 503):
        error.retry_after = _retry_after_seconds(headers) or error.retry_after
    return error


def _error_from_status(status: int, headers: Mapping[str, str]) -> MusicGenError:
    if status == 429:
        return QueueFull("The server responded with 429: too many requests.", hint="Retry later.")
    if status in (502, 503, 504):
        return Unavailable(
            f"The server responded with {status}.", hint="Retry later.", retry_after=GATEWAY_RETRY_SECONDS
        )
    if status < 400:
        return InvalidResponse(f"The server redirects to {headers.get('Location')}.", hint="Use that URL.")
    return InvalidResponse(
        f"The server responded with {status}.", hint="Is the URL that of a musicgen-bento server of this version?"
    )


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Parse Retry-After, a number of seconds or an HTTP date; None where it is missing or invalid."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
