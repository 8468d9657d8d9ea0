"""The one middleware of the front: reads and checks bodies, gives every error one shape, writes one log line.

It stands before BentoML's own parsing, because that logs the values it refuses, and behind nothing that
could answer in another shape. Whatever it lets through is valid.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from musicgen_bento import errors
from musicgen_bento.errors import MusicGenError
from musicgen_bento.log import exception_location
from musicgen_bento.runner.metrics import count_error
from musicgen_bento.server.request_body import MAX_BODY, check_headers, parse
from musicgen_bento.server.request_context import (
    RequestContext,
    ResponseAborted,
    ResponseWriter,
    current_exchange,
    unexpected,
    until_gone,
)
from musicgen_bento.server.shutdown import Drain, InFlight, cancel

NAMED = "musicgen.named"
JOB_PATH = "/jobs/{id}"
BODY_SECONDS = 30.0
UNLOGGED = frozenset(("/livez", "/readyz", "/healthz", "/metrics"))

_log = logging.getLogger("bentoml.musicgen")


class PathNormalizer:
    """Stands before everything: a path that is none of ours is known as `/-` from here on.

    It holds whatever a client wrote there, and BentoML keeps a set of metrics, on disk, for each it meets. For the
    same reason a path such as `/jobs/{id}` is known by just that; the id is in the scope, under `NAMED`. There are no
    WebSockets here: a handshake ends before it is counted.

    Args:
        app: what comes after it.
        paths: ours.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str]) -> None:
        self._app = app
        self._paths = paths
        self._patterns = {path: compile_path(path)[0] for path in sorted(paths) if "{" in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; one slash too many at the end is forgiven."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] not in self._paths:
            path, named = self._known(scope["path"].removesuffix("/"))
            query = scope["query_string"] if path != "/-" else b""
            scope = {**scope, "path": path, "raw_path": path.encode(), "query_string": query, NAMED: named}
        await self._app(scope, receive, send)

    def _known(self, path: str) -> tuple[str, dict[str, str]]:
        if path in self._paths:
            return path, {}
        for template, pattern in self._patterns.items():
            if found := pattern.match(path):
                return template, found.groupdict()
        return "/-", {}


class Middleware:
    """See the module.

    Args:
        app: what comes after it.
        bodies: what a POST to each API path takes; None where it takes nothing.
        drain: refuses new work once it has begun, and says when running work must stop.
        work: counts the requests whose bodies are accepted and not yet answered.
    """

    def __init__(
        self, app: ASGIApp, bodies: Mapping[str, type[BaseModel] | None], drain: Drain, work: InFlight
    ) -> None:
        self._app = app
        self._bodies = bodies
        self._drain = drain
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens: an app that raises before it sends would hang in BentoML."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        current = RequestContext(scope["method"], scope["path"])
        token = current_exchange.set(current)
        answer = ResponseWriter(current, send)
        try:
            try:
                await self._serve(scope, receive, answer, current)
            except MusicGenError as error:
                await answer.refuse(error, receive)
            except ResponseAborted:
                raise
            except Exception as error:  # only its place is logged: its text may hold the prompt
                _log.error("id=%s failed: %s", current.id, exception_location(error))
                await answer.refuse(unexpected(current.id), receive)
        finally:
            current_exchange.reset(token)
            if current.error:
                count_error(current.error.code)
            if current.path not in UNLOGGED and not _is_poll(current):
                _log.info(current.line())

    async def _serve(self, scope: Scope, receive: Receive, answer: ResponseWriter, current: RequestContext) -> None:
        if scope["method"] != "POST" or scope["path"] not in self._bodies:
            await self._app(scope, receive, answer.send)
            return
        if self._drain.started:
            raise errors.ShuttingDown("The server is shutting down.", hint="Try again later.", retry_after=5)
        check_headers(Headers(scope=scope))
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read(receive)
        except TimeoutError:
            raise errors.RequestTimeout(
                "The body did not come.", hint=f"Send all of it within {BODY_SECONDS:g} seconds."
            ) from None
        if body is None:
            await answer.gone()
            return
        kind = self._bodies[scope["path"]]
        parse(body, kind)
        with self._work:
            await self._work_for(scope, receive, body if kind else b"{}", answer)

    async def _work_for(self, scope: Scope, receive: Receive, body: bytes, answer: ResponseWriter) -> None:
        """Run the app while the client listens and the server may: cancelled, it drops what it has begun."""
        scope = {**scope, "headers": _as_json(scope["headers"])}
        gone = asyncio.ensure_future(until_gone(receive))
        app = asyncio.ensure_future(self._drain.finish(self._app(scope, _replay(body, gone), answer.send)))
        try:
            await asyncio.wait((app, gone), return_when=asyncio.FIRST_COMPLETED)
            if app.done() or answer.complete:  # a client may leave as soon as it has everything
                await app
            else:
                await cancel(app)
                await answer.gone()
        finally:
            await cancel(app, gone)


def _is_poll(current: RequestContext) -> bool:
    """One of the many questions after a job; the job has a line of its own when it is over."""
    return (current.method, current.path, current.error) == ("GET", JOB_PATH, None)


async def _read(receive: Receive) -> bytes | None:
    """The body; None where the client left before its end.

    Raises:
        BodyTooLarge: as soon as it is.
    """
    pieces, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > MAX_BODY:
            raise errors.BodyTooLarge("The body is too large.", hint=f"At most {MAX_BODY} bytes.")
        if not message.get("more_body", False):
            return b"".join(pieces)


def _replay(body: bytes, gone: asyncio.Future[None]) -> Receive:
    """A receive that gives the body that was read already, then waits for the client to leave."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.wait((gone,))
        return {"type": "http.disconnect"}

    return receive


def _as_json(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """BentoML picks its parser by the content type; ours has accepted the body as JSON."""
    return [(k, v) for k, v in headers if k.lower() != b"content-type"] + [(b"content-type", b"application/json")]
