"""The middleware of the HTTP process: it checks request bodies, handles errors and writes one log line per request.

It runs before BentoML parses a body, because BentoML logs the values that it refuses. All bodies that it passes on are
valid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from musicgen_bento.errors import MusicGenError, ShuttingDown
from musicgen_bento.log import exception_location, logger
from musicgen_bento.runner.metrics import count_error
from musicgen_bento.server.error_responses import ResponseAborted, ResponseWriter, internal_error
from musicgen_bento.server.request_body import check_headers, parse_body, read_body, replay_body, wait_for_disconnect
from musicgen_bento.server.request_context import RequestContext, current_request_var
from musicgen_bento.server.shutdown import Drain, InFlight
from musicgen_bento.server.tasks import Stopped, run_until

PATH_PARAMS = "musicgen.path_params"  # key in the ASGI scope
JOB_PATH = "/jobs/{id}"
UNKNOWN_PATH = "/-"
QUIET_PATHS = frozenset(("/livez", "/readyz", "/healthz", "/metrics"))  # probes would fill the log


class PathNormalizer:
    """Replaces unknown paths by `/-`, and paths such as `/jobs/abc` by their template, before any other middleware.

    A client can write anything into a path, such as a prompt or a job id, and BentoML keeps metrics on disk for each
    path. The path parameters are in the scope under `PATH_PARAMS`. The service has no WebSockets, so a handshake is
    closed here, before it is counted.

    Args:
        app: the next ASGI app.
        paths: the known paths and templates.
    """

    def __init__(self, app: ASGIApp, paths: frozenset[str]) -> None:
        self._app = app
        self._paths = paths
        self._patterns = {path: compile_path(path)[0] for path in sorted(paths) if "{" in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its normalized path. One extra slash at the end is ignored."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] not in self._paths:
            path, params = self._normalize(scope["path"].removesuffix("/"))
            query = scope["query_string"] if path != UNKNOWN_PATH else b""
            scope = {**scope, "path": path, "raw_path": path.encode(), "query_string": query, PATH_PARAMS: params}
        await self._app(scope, receive, send)

    def _normalize(self, path: str) -> tuple[str, dict[str, str]]:
        if path in self._paths:
            return path, {}
        for template, pattern in self._patterns.items():
            if match := pattern.match(path):
                return template, match.groupdict()
        return UNKNOWN_PATH, {}


class Middleware:
    """Checks the body of a request, handles its errors, and logs it.

    Args:
        app: the next ASGI app.
        bodies: the model of the POST body of each API path; None for an empty body.
        drain: the shutdown of this process. After its start, new requests are refused.
        in_flight: counts the requests that have been accepted and are not finished.
    """

    def __init__(
        self, app: ASGIApp, bodies: Mapping[str, type[BaseModel] | None], drain: Drain, in_flight: InFlight
    ) -> None:
        self._app = app
        self._bodies = bodies
        self._drain = drain
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Every request gets a response: BentoML hangs if an app raises before it sends one."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = RequestContext(scope["method"], scope["path"])
        token = current_request_var.set(context)
        writer = ResponseWriter(context, send)
        try:
            try:
                await self._handle(scope, receive, writer)
            except MusicGenError as error:
                await writer.send_error(error, receive)
            except ResponseAborted:
                raise
            except Exception as error:  # only its location is logged: its text may contain the prompt
                logger.error("id=%s failed: %s", context.id, exception_location(error))
                await writer.send_error(internal_error(context.id), receive)
        finally:
            current_request_var.reset(token)
            if context.error:
                count_error(context.error.code)
            if context.path not in QUIET_PATHS and not _is_poll(context):
                logger.info(context.log_line())

    async def _handle(self, scope: Scope, receive: Receive, writer: ResponseWriter) -> None:
        if scope["method"] != "POST" or scope["path"] not in self._bodies:
            await self._app(scope, receive, writer.send)
            return
        if self._drain.started:
            raise ShuttingDown
        check_headers(Headers(scope=scope))
        body = await read_body(receive)
        if body is None:
            await writer.end_disconnected()
            return
        model_type = self._bodies[scope["path"]]
        parse_body(body, model_type)
        with self._in_flight:
            await self._run_until_disconnect(scope, receive, body if model_type else b"{}", writer)

    async def _run_until_disconnect(self, scope: Scope, receive: Receive, body: bytes, writer: ResponseWriter) -> None:
        """Run the app; cancel it when the client disconnects or the time for the shutdown is up."""
        disconnected = asyncio.ensure_future(wait_for_disconnect(receive))
        scope = {**scope, "headers": _force_json_content_type(scope["headers"])}
        app = self._app(scope, replay_body(body, disconnected), writer.send)
        try:
            # A client may disconnect as soon as it has the whole response. The app may then still clean up.
            await run_until(self._drain.finish(app), disconnected, let_finish=lambda: writer.complete)
        except Stopped:
            await writer.end_disconnected()


def _is_poll(context: RequestContext) -> bool:
    """Return whether a request polls a job. There are many of these, and a finished job has a log line of its own."""
    return (context.method, context.path, context.error) == ("GET", JOB_PATH, None)


def _force_json_content_type(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Set the content type from which BentoML chooses its parser; the body has been accepted as JSON already."""
    other_headers = [(name, value) for name, value in headers if name.lower() != b"content-type"]
    return [*other_headers, (b"content-type", b"application/json")]
