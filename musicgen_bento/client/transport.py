"""HTTP calls to one server: timeouts, retries where they are safe, and a MusicGenError for every failure.

The retry loop is our own because `urllib3.Retry` pauses in `time.sleep`, which no other thread can cancel and no
overall deadline limits. It counts attempts, so it cannot wait 90 s for a restarting server, and it does not repeat a
GET whose body is truncated. It does not read the error code in the body, so failures would still be mapped here.

requests is imported on first use: its import takes half as long as that of the whole client.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from musicgen_bento import __version__
from musicgen_bento.client.deadline import Deadline
from musicgen_bento.client.errors import (
    ServerRestarting,
    cancelled,
    error_from_requests,
    error_from_response,
    invalid_response,
    is_retryable,
    timed_out,
)
from musicgen_bento.errors import InvalidRequest, MusicGenError

if TYPE_CHECKING:
    import requests

CONNECT_TIMEOUT_SECONDS = 10.0
READ_TIMEOUT_SECONDS = 30.0  # without a byte
FIRST_PAUSE_SECONDS = 0.5  # before the first retry; each further pause is twice as long
MAX_BACKOFF_DOUBLINGS = 3
MAX_PAUSE_SECONDS = 300.0  # an error with a longer `retry_after` is not retried
RESTART_WAIT_SECONDS = 90.0  # a restart of the server takes no longer
CHUNK_BYTES = 64 * 1024
STREAM_CHUNK_BYTES = 4096  # 64 ms of 32 kHz mono

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Server:
    """The address of a server, and how to send requests to it.

    Args:
        url: such as http://localhost:8000; it may have a path, for a server behind a proxy.
        retries: number of retries after a temporary failure.
        headers: HTTP headers sent with every request.

    Raises:
        InvalidRequest: the URL is invalid.
    """

    url: str
    retries: int
    headers: Mapping[str, str]

    def __post_init__(self) -> None:
        if not _is_http_url(self.url):
            raise InvalidRequest("Invalid server URL.", hint="An example is http://localhost:8000.", field="url")

    @property
    def display_url(self) -> str:
        """The URL for messages: without user name, password and path, which may be secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


@dataclass(frozen=True, slots=True)
class ServerResponse:
    """A complete response with a status below 300."""

    headers: Mapping[str, str]
    body: bytes

    def parse(self, model_type: type[Model]) -> Model:
        """Return the body as a model.

        Raises:
            InvalidResponse: the body does not match the model.
        """
        try:
            return model_type.model_validate_json(self.body)
        except ValidationError:
            raise invalid_response() from None


@dataclass(frozen=True, slots=True)
class StreamedResponse:
    """A response with a status below 300 whose body is still arriving. A caller that stops early closes `chunks`."""

    headers: Mapping[str, str]
    chunks: Generator[bytes, None, None]


class Transport:
    """Related calls to one server over one connection, from one thread at a time.

    Args:
        server: the server to call.
        deadline: the time limit of all calls together.
        cancel_event: set by any thread to end the calls with Cancelled.
    """

    def __init__(self, server: Server, deadline: Deadline, cancel_event: threading.Event | None = None) -> None:
        import requests

        self._server = server
        self._url = server.url.rstrip("/")
        self._deadline = deadline
        self._cancel_event = cancel_event or threading.Event()
        self._has_responded = False  # whether the server has ever responded
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"musicgen-bento/{__version__}"
        self._session.headers.update(server.headers)

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def request(
        self, method: str, path: str, *, read_timeout: float = READ_TIMEOUT_SECONDS, **arguments: Any
    ) -> ServerResponse:
        """Send a request and return the complete response.

        Every call of this service may safely be repeated. A lost connection, a read timeout, and a 429 or 503 that
        carries a retry time are retried.

        Args:
            method: the HTTP method.
            path: such as /models.
            read_timeout: seconds without a byte after which the connection counts as lost.
            arguments: `json` or `params`, as `requests` takes them.

        Raises:
            MusicGenError: the call failed permanently, or all retries did.
        """
        return self._with_retries(lambda: self._request_once(method, path, read_timeout, arguments))

    def stream(self, path: str, *, read_timeout: float) -> StreamedResponse:
        """Send a GET and return the response while its body arrives. Reading the body is not retried.

        Raises:
            MusicGenError: the call failed permanently, or all retries did.
        """
        return self._with_retries(lambda: self._stream_once(path, read_timeout))

    def pause(self, error: MusicGenError, retry: int) -> None:
        """Wait before a retry: at least the error's `retry_after`, and twice as long with each retry.

        Args:
            error: the failure of the last attempt.
            retry: number of retries so far.

        Raises:
            MusicGenError: `error` itself; the pause would be longer than the deadline or 300 s.
            TimedOut: the pause would be longer than the deadline, and `error` is not a response of the server.
            Cancelled: the caller cancelled.
        """
        seconds = max(error.retry_after or 0.0, FIRST_PAUSE_SECONDS * 2**retry)
        remaining = self._deadline.remaining()
        if not error.status and seconds > remaining:
            raise timed_out()
        if seconds > min(remaining, MAX_PAUSE_SECONDS):
            raise error  # a response of the server is more specific than TimedOut
        if self._cancel_event.wait(seconds):
            raise cancelled()

    def _with_retries(self, attempt: Callable[[], Result]) -> Result:
        retries, first_failure = 0, math.inf
        while True:
            try:
                return attempt()
            except MusicGenError as error:
                first_failure = min(first_failure, time.monotonic())
                may_retry = retries < self._server.retries or self._awaits_restart(error, first_failure)
                if not is_retryable(error) or not may_retry:
                    raise
                self.pause(error, min(retries, MAX_BACKOFF_DOUBLINGS))
                retries += 1

    def _awaits_restart(self, error: MusicGenError, first_failure: float) -> bool:
        """Whether to wait for a restarting server, however many retries that takes."""
        waited_seconds = time.monotonic() - first_failure
        return (
            isinstance(error, ServerRestarting) and self._server.retries > 0 and waited_seconds < RESTART_WAIT_SECONDS
        )

    def _request_once(
        self, method: str, path: str, read_timeout: float, arguments: Mapping[str, Any]
    ) -> ServerResponse:
        with self._translate_errors(), self._send(method, path, read_timeout, arguments) as response:
            self._has_responded = True
            # The response to a POST names the job. It is read also after a cancellation, to delete the job.
            body = b"".join(self._read_chunks(response, CHUNK_BYTES)) if method == "GET" else response.content
        if response.status_code >= 300:
            raise error_from_response(response.status_code, response.headers, body)
        return ServerResponse(response.headers, body)

    def _stream_once(self, path: str, read_timeout: float) -> StreamedResponse:
        with self._translate_errors():
            response = self._send("GET", path, read_timeout, {})
        if response.status_code >= 300:
            with self._translate_errors(), response:
                raise error_from_response(response.status_code, response.headers, response.content)
        return StreamedResponse(response.headers, self._read_stream(response))

    def _send(self, method: str, path: str, read_timeout: float, arguments: Mapping[str, Any]) -> requests.Response:
        """Send a request and return the response once its headers have arrived."""
        if self._cancel_event.is_set():
            raise cancelled()
        remaining = self._deadline.remaining()
        timeouts = (min(CONNECT_TIMEOUT_SECONDS, remaining), min(read_timeout, remaining))
        return self._session.request(
            method, self._url + path, timeout=timeouts, stream=True, allow_redirects=False, **arguments
        )

    def _read_stream(self, response: requests.Response) -> Generator[bytes, None, None]:
        """Yield the body as it arrives.

        Raises:
            Unreachable: the body is truncated.
        """
        with self._translate_errors(), response:
            yield from self._read_chunks(response, STREAM_CHUNK_BYTES)

    def _read_chunks(self, response: requests.Response, chunk_bytes: int) -> Generator[bytes, None, None]:
        """Yield a body in chunks. Its length is checked here: urllib3 before 2.0 does not."""
        from requests import exceptions

        is_encoded = "Content-Encoding" in response.headers  # by a proxy; then Content-Length is not that of the chunks
        missing_bytes = 0 if is_encoded else int(response.headers.get("Content-Length", 0))
        for chunk in response.iter_content(chunk_bytes):
            self._deadline.remaining()
            if self._cancel_event.is_set():
                raise cancelled()
            missing_bytes -= len(chunk)
            yield chunk
        if missing_bytes > 0:
            raise exceptions.ConnectionError

    @contextmanager
    def _translate_errors(self) -> Generator[None, None, None]:
        """Raise the exceptions of requests as Unreachable, or as TimedOut past the deadline."""
        from requests import exceptions

        try:
            yield
        except exceptions.RequestException as error:
            self._deadline.remaining()
            raise error_from_requests(error, self._server.display_url, self._has_responded) from None


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises ValueError unless it is a number
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
    except ValueError:
        return False
