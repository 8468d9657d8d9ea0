"""Calls to one server: limits of time, repeats where they are safe, every failure a MusicGenError.

requests is imported on first use: it would be half of the time that the client's own import takes.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from musicgen_bento import __version__
from musicgen_bento.errors import InvalidRequest, MusicGenError, QueueFull, Unavailable
from musicgen_bento.schemas import ErrorBody

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0  # without a byte
LONGEST_PAUSE = 300.0  # a server that wants more is not waited for
PIECE = 64 * 1024
AWAY_SECONDS = 90.0  # a server that is started again takes so long at most
LONGER = 3  # times that a pause is twice the one before
SMALL_PIECE = 4096  # of music, 64 ms

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")


class Unreachable(MusicGenError):
    """No answer came: there is no server at the address, or the connection to it broke."""

    status, code = 0, "unreachable"


class ServerRestarting(Unreachable):
    """A server that has answered before, and now nothing listens there: it may be on its way back."""


class TimedOut(MusicGenError):
    """The time that the caller gave is over."""

    status, code = 0, "timed_out"


class InvalidResponse(MusicGenError):
    """An answer came that is none of this service's."""

    status, code = 0, "bad_answer"


class StreamTruncated(MusicGenError):
    """A stream broke off: what came of it is a part."""

    status, code = 0, "cut_short"


class Cancelled(MusicGenError):
    """The caller wants no answer any more."""

    status, code = 0, "cancelled"


class Deadline:
    """The time for one piece of work. `seconds` None is no limit."""

    def __init__(self, seconds: float | None) -> None:
        if seconds is not None and not seconds > 0:
            raise InvalidRequest("timeout should be more than 0 seconds.", hint="None is no limit.", field="timeout")
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        """Seconds.

        Raises:
            TimedOut: there are none.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise timed_out()
        return left


@dataclass(frozen=True, slots=True)
class Server:
    """Where the service is, and how it is asked.

    Args:
        url: such as http://localhost:8000; what is behind the path of a proxy works too.
        retries: how often something that failed in passing is done again.
        headers: sent with every request.

    Raises:
        InvalidRequest: the address is none.
    """

    url: str
    retries: int
    headers: Mapping[str, str]

    @property
    def name(self) -> str:
        """For people: the address without what may be secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            fine = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
            parts.port  # noqa: B018  raises where it is no number
        except ValueError:
            fine = False
        if not fine:
            raise InvalidRequest("This is no server's address.", hint="One is http://localhost:8000.", field="url")


@dataclass(frozen=True, slots=True)
class ServerResponse:
    """A good one."""

    headers: Mapping[str, str]
    body: bytes

    def read(self, kind: type[Model]) -> Model:
        """The body as a model.

        Raises:
            BadAnswer: it is none.
        """
        try:
            return kind.model_validate_json(self.body)
        except ValidationError:
            raise bad_answer() from None


@dataclass(frozen=True, slots=True)
class StreamedResponse:
    """A good answer that is on its way. Whoever stops reading closes `pieces`."""

    headers: Mapping[str, str]
    pieces: Generator[bytes, None, None]


class Transport:
    """Calls that belong together, over one connection, from one thread at a time.

    Args:
        server: whom.
        deadline: for all of them.
        stopped: once it is set, no call goes on.
    """

    def __init__(self, server: Server, deadline: Deadline, stopped: threading.Event | None = None) -> None:
        import requests

        self._server = server
        self._url = server.url.rstrip("/")
        self._deadline = deadline
        self._stopped = stopped or threading.Event()
        self._heard = False  # whether the server has ever answered
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"musicgen-bento/{__version__}"
        self._session.headers.update(server.headers)

    def __enter__(self) -> Transport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._session.close()

    def ask(self, method: str, path: str, *, silence: float = READ_SECONDS, **rest: Any) -> ServerResponse:
        """One call, repeated where that is safe: every call of this service may be made twice.

        Repeated are: a connection that broke, a server that fell silent, 429 and 503 that say when to come back.

        Args:
            method: of HTTP.
            path: such as /models.
            silence: seconds without a byte after which the server is taken for gone.
            rest: `json` or `params`, as requests takes them.

        Raises:
            MusicGenError: it failed, for good or too often.
        """
        return self._insist(lambda: self._once(method, path, silence, rest))

    def open(self, path: str, *, silence: float) -> StreamedResponse:
        """A GET, repeated like any other, whose body is read while it comes. That is not repeated.

        Raises:
            MusicGenError: it failed, for good or too often.
        """
        return self._insist(lambda: self._opened(path, silence))

    def pause(self, error: MusicGenError, repeat: int) -> None:
        """Wait as long as the error says, longer each time.

        Raises:
            MusicGenError: the error itself, where that would take too long.
            Cancelled: the caller wants no answer any more.
        """
        seconds = max(error.retry_after or 0.0, 0.5 * 2**repeat)
        if not error.status and seconds > self._deadline.left():
            raise timed_out()
        if seconds > min(self._deadline.left(), LONGEST_PAUSE):
            raise error  # it says more than that there is no time
        if self._stopped.wait(seconds):
            raise cancelled()

    def _insist(self, attempt: Callable[[], Result]) -> Result:
        repeat, began = 0, math.inf
        while True:
            try:
                return attempt()
            except MusicGenError as error:
                began = min(began, time.monotonic())
                if not passing(error) or not (repeat < self._server.retries or self._awaited(error, began)):
                    raise
                self.pause(error, min(repeat, LONGER))
                repeat += 1

    def _awaited(self, error: MusicGenError, since: float) -> bool:
        """Whether a server that is away is waited for, however many times that takes."""
        return (
            isinstance(error, ServerRestarting) and self._server.retries > 0 and time.monotonic() - since < AWAY_SECONDS
        )

    def _opened(self, path: str, silence: float) -> StreamedResponse:
        if self._stopped.is_set():
            raise cancelled()
        left = self._deadline.left()
        limits = (min(CONNECT_SECONDS, left), min(silence, left))
        with self._failures():
            answer = self._session.get(self._url + path, timeout=limits, stream=True, allow_redirects=False)
        if answer.status_code >= 300:
            with self._failures(), answer:
                raise refusal(answer.status_code, answer.headers, answer.content)
        return StreamedResponse(answer.headers, self._read(answer))

    def _read(self, answer: requests.Response) -> Generator[bytes, None, None]:
        """The body as it comes.

        Raises:
            Unreachable: it is not whole.
        """
        with self._failures(), answer:
            yield from self._pieces(answer, SMALL_PIECE)

    def _once(self, method: str, path: str, silence: float, rest: Mapping[str, Any]) -> ServerResponse:
        if self._stopped.is_set():
            raise cancelled()
        left = self._deadline.left()
        limits = (min(CONNECT_SECONDS, left), min(silence, left))
        with self._failures():
            answer = self._session.request(
                method, self._url + path, timeout=limits, stream=True, allow_redirects=False, **rest
            )
            with answer:
                self._heard = True
                # What a POST has begun is the answer's to name: it is read whatever has happened meanwhile.
                body = b"".join(self._pieces(answer)) if method == "GET" else answer.content
        if answer.status_code >= 300:
            raise refusal(answer.status_code, answer.headers, body)
        return ServerResponse(answer.headers, body)

    def _pieces(self, answer: requests.Response, size: int = PIECE) -> Generator[bytes, None, None]:
        """A body that comes in pieces, to its end: an older urllib3 takes one that broke off for a whole one."""
        from requests import exceptions

        encoded = "Content-Encoding" in answer.headers  # by a proxy; the length is not that of the pieces then
        left = 0 if encoded else int(answer.headers.get("Content-Length", 0))
        for piece in answer.iter_content(size):
            self._deadline.left()
            if self._stopped.is_set():
                raise cancelled()
            left -= len(piece)
            yield piece
        if left > 0:
            raise exceptions.ConnectionError

    @contextmanager
    def _failures(self) -> Generator[None, None, None]:
        """What requests raises, as ours; those that may pass say when to try again."""
        from requests import exceptions

        try:
            yield
        except exceptions.RequestException as error:
            self._deadline.left()
            where = self._server.name
            if isinstance(error, exceptions.SSLError):
                raise Unreachable(f"{where} has no valid certificate.", hint="Is it https?") from None
            if isinstance(error, exceptions.ConnectTimeout) or _refused(error):
                if self._heard:
                    raise ServerRestarting(
                        f"The server at {where} is gone.", hint="Try again later.", retry_after=1.0
                    ) from None
                raise Unreachable(f"There is no server at {where}.", hint="Is it running?") from None
            if isinstance(error, exceptions.Timeout):
                raise Unreachable(f"{where} does not answer.", hint="Try again later.", retry_after=1.0) from None
            dropped = (exceptions.ConnectionError, exceptions.ChunkedEncodingError)
            again = 0.5 if isinstance(error, dropped) else None
            raise Unreachable(f"The connection to {where} broke.", hint="Try again.", retry_after=again) from None


def passing(error: MusicGenError) -> bool:
    """Whether the same request may do better later: the error says when."""
    return error.retry_after is not None


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> MusicGenError:
    """The error that an answer is."""
    try:
        error = MusicGenError.from_dict(ErrorBody.model_validate_json(body).model_dump())
    except ValidationError:
        error = _foreign(status, headers)
    if status in (429, 503):
        error.retry_after = _retry_after(headers) or error.retry_after
    return error


def timed_out() -> TimedOut:
    """For a caller whose time is over."""
    return TimedOut("The answer was not there in time.", hint="Give it a longer timeout, or none.")


def bad_answer() -> InvalidResponse:
    """For an answer that is not as the API document says."""
    return InvalidResponse("The answer could not be read.", hint="Is it a musicgen-bento server, of this version?")


def cancelled() -> Cancelled:
    """For a caller that has cancelled."""
    return Cancelled("The clip was cancelled.")


def _foreign(status: int, headers: Mapping[str, str]) -> MusicGenError:
    """For an answer that something else gave: a proxy, another service."""
    if status == 429:
        return QueueFull("The server answered 429: too many requests.", hint="Try again later.")
    if status in (502, 503, 504):
        return Unavailable(f"The server answered {status}.", hint="Try again later.", retry_after=1.0)
    if status < 400:
        return InvalidResponse(f"The server points to {headers.get('Location')}.", hint="Use that address.")
    return InvalidResponse(f"The server answered {status}.", hint="Is it a musicgen-bento server, of this version?")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; the header holds a number or a date."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _refused(error: Exception) -> bool:
    """Whether no connection came about: nothing listens there, or no machine has the name."""
    from urllib3.exceptions import NewConnectionError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    return isinstance(reason, NewConnectionError)
