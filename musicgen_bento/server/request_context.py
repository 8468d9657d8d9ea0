"""One request and its answer: what the log says of it, and the one shape of every error."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Send

from musicgen_bento import errors
from musicgen_bento.errors import MusicGenError
from musicgen_bento.server.request_body import MAX_BODY

CLIENT_LEFT = 499
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 * 1024 * 1024


@dataclass
class RequestContext:
    """One request and what is known of its answer. The service fills in what the log line says.

    Attributes:
        error: what the client is told instead of the response's own body.
    """

    method: str
    path: str
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    error: MusicGenError | None = None
    model: str | None = None
    duration: float | None = None

    def line(self) -> str:
        """For the log."""
        model = f" model={self.model}" if self.model else ""
        duration = f" duration={self.duration:g}" if self.duration is not None else ""
        code = f" code={self.error.code}" if self.error else ""
        seconds = time.monotonic() - self.started
        method = self.method if self.method.isalpha() and len(self.method) < 8 else "?"
        return f"id={self.id} {method} {self.path}{model}{duration} seconds={seconds:.3f} status={self.status}{code}"


current_exchange: ContextVar[RequestContext | None] = ContextVar("musicgen_exchange", default=None)


def exchange() -> RequestContext:
    """The exchange that is going on."""
    return current_exchange.get() or RequestContext("", "")


def refuse(error: MusicGenError) -> Response:
    """What an API method returns to say no: the middleware writes the body."""
    exchange().error = error.without_traceback()
    return Response(status_code=error.status)


class ResponseAborted(Exception):
    """An answer broke off half way. Says nothing else, for the server logs it."""


class ResponseWriter:
    """What goes back to the client. Error responses of others are replaced by ours.

    Attributes:
        started: the status is on its way.
        complete: the last byte is.
    """

    def __init__(self, current: RequestContext, send: Send) -> None:
        self._current = current
        self._send = send
        self._replaced = False
        self.started = False
        self.complete = False

    async def send(self, message: Message) -> None:
        """What the app sends, on its way out."""
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = MutableHeaders(raw=message["headers"])
            if self._current.error or status >= 400:
                self._replaced = True
                allow = {"allow": headers["allow"]} if "allow" in headers else {}
                if status == 405 and self._current.method == "OPTIONS":
                    await self._finish(Response(status_code=204, headers=allow))
                else:
                    await self._write(self._current.error or _foreign(status, self._current), allow)
                return
            self._current.status = status
            self.started = True
            headers["X-Request-Id"] = self._current.id
            message = {**message, "headers": headers.raw}
        if not self._replaced:
            await self._send(message)
            self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def refuse(self, error: MusicGenError, receive: Receive) -> None:
        """Answer with the error; a body that is too large is read on for a while, or the answer would be lost."""
        if self.complete:
            return
        if self.started:  # too late for an error: the connection must break
            self._current.error = error.without_traceback()
            raise ResponseAborted from None
        unread = isinstance(error, errors.BodyTooLarge | errors.RequestTimeout)
        linger = receive if isinstance(error, errors.BodyTooLarge) else None
        await self._write(error, {"connection": "close"} if unread else {}, linger)

    async def gone(self) -> None:
        """The client has left; something has to be said all the same, or BentoML waits for it."""
        if not self.started:
            await self._finish(Response(status_code=CLIENT_LEFT))
        self._current.status = CLIENT_LEFT

    async def _write(self, error: MusicGenError, headers: dict[str, str], linger: Receive | None = None) -> None:
        self._current.error = error.without_traceback()
        response = JSONResponse(error.to_dict(), status_code=error.status, headers=headers)
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        await self._finish(response, linger)

    async def _finish(self, response: Response, linger: Receive | None = None) -> None:
        self._current.status = response.status_code
        self.started = True
        response.headers["X-Request-Id"] = self._current.id
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self._send(start)
        body = bytes(response.body) if self._current.method != "HEAD" else b""
        if linger:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await _discard(linger)
            body = b""
        await self._send({"type": "http.response.body", "body": body})
        self.complete = True


async def until_gone(receive: Receive) -> None:
    """Until the client has left. Nothing else may receive meanwhile."""
    while (await receive())["type"] != "http.disconnect":
        pass


def unexpected(request: str) -> MusicGenError:
    """What a client is told of a failure that nobody foresaw. `request` is its id, as the log has it."""
    return MusicGenError(f"The server failed (request {request}).", hint="The server's log says where.")


def _foreign(status: int, current: RequestContext) -> MusicGenError:
    """The error for a response that starlette or BentoML made."""
    match status:
        case 404:
            return errors.NotFound("There is nothing at this address.", hint="GET / is the page, /docs.json the API.")
        case 405:
            return errors.MethodNotAllowed(
                f"This address does not take {current.method[:20]}.", hint="The Allow header says what it takes."
            )
        case 413:
            return errors.BodyTooLarge("The body is too large.", hint=f"At most {MAX_BODY} bytes.")
        case 415:
            return errors.UnsupportedMediaType("The body must be JSON.", hint="Send Content-Type: application/json.")
        case 429:
            return errors.QueueFull("Too many requests.", hint="Try again in a moment.", retry_after=1)
        case 502 | 503 | 504:
            return errors.Unavailable("The service cannot answer now.", hint="Try again in a moment.", retry_after=1)
        case _ if status < 500:
            return errors.InvalidRequest("The request is not valid.", hint="See /docs.json.")
        case _:
            return unexpected(current.id)


async def _discard(receive: Receive) -> None:
    size = 0
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while size < LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
