"""Error responses: every error that a client gets has the same JSON form, whether this package or BentoML raised it."""

from __future__ import annotations

import math

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from musicgen_bento import errors
from musicgen_bento.errors import MusicGenError
from musicgen_bento.server.request_body import body_too_large, discard_body
from musicgen_bento.server.request_context import CLIENT_DISCONNECTED, RequestContext, current_request


class ErrorResponse(JSONResponse):
    """The complete response of an error: status, JSON body and Retry-After.

    When it is sent, it records its error in the request context. `ResponseWriter` recognizes it by that and replaces
    all other error responses.
    """

    def __init__(self, error: MusicGenError, headers: dict[str, str] | None = None) -> None:
        super().__init__(error.to_dict(), status_code=error.status, headers=headers)
        if error.retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        self.error = error.without_traceback()
        self._own_headers = list(self.raw_headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, without the headers that BentoML adds to a response of a handler."""
        current_request().error = self.error
        self.raw_headers = self._own_headers
        if scope["method"] == "HEAD":
            self.body = b""
        await super().__call__(scope, receive, send)


class ResponseAborted(Exception):
    """A response ended before it was complete. It carries no text, because the HTTP server logs it."""


class ResponseWriter:
    """Sends the response of one request, and replaces the error responses of BentoML and Starlette.

    Attributes:
        started: whether the status has been sent.
        complete: whether the last byte has been sent.
    """

    def __init__(self, context: RequestContext, send: Send) -> None:
        self._context = context
        self._send = send
        self._replaced = False
        self.started = False
        self.complete = False

    async def send(self, message: Message) -> None:
        """Send a message of the app, or replace its response."""
        if message["type"] == "http.response.start":
            status, headers = message["status"], MutableHeaders(raw=message["headers"])
            if status >= 400 and not self._context.error:
                self._replaced = True
                await self._send_response(self._replacement(status, headers))
                return
            self._context.status = status
            self.started = True
            headers["X-Request-Id"] = self._context.id
            message = {**message, "headers": headers.raw}
        if not self._replaced:
            await self._send(message)
            self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    def _replacement(self, status: int, headers: MutableHeaders) -> Response:
        allow = {"allow": headers["allow"]} if "allow" in headers else {}
        if status == 405 and self._context.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        return ErrorResponse(error_for_status(status, self._context), allow)

    async def send_error(self, error: MusicGenError, receive: Receive) -> None:
        """Send an error response, unless the response is complete already.

        Raises:
            ResponseAborted: a part of the response has been sent, so the connection must be closed.
        """
        if self.complete:
            return
        if self.started:
            self._context.error = error.without_traceback()
            raise ResponseAborted from None
        body_unread = isinstance(error, errors.BodyTooLarge | errors.RequestTimeout)
        response = ErrorResponse(error, {"connection": "close"} if body_unread else None)
        # Closing a connection with unread data resets it, and the client would lose the response.
        await self._send_response(response, receive if isinstance(error, errors.BodyTooLarge) else None)

    async def end_disconnected(self) -> None:
        """End the response of a disconnected client. BentoML waits for a response even then."""
        if not self.started:
            await self._send_response(Response(status_code=CLIENT_DISCONNECTED))
        self._context.status = CLIENT_DISCONNECTED

    async def _send_response(self, response: Response, unread_body: Receive | None = None) -> None:
        """Send a response. Before its end, discard the request body that `unread_body` receives."""
        if isinstance(response, ErrorResponse):
            self._context.error = response.error
        self._context.status = response.status_code
        self.started = True
        response.headers["X-Request-Id"] = self._context.id
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self._send(start)
        body = bytes(response.body) if self._context.method != "HEAD" else b""
        if unread_body:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await discard_body(unread_body)
            body = b""
        await self._send({"type": "http.response.body", "body": body})
        self.complete = True


def internal_error(http_request_id: str) -> MusicGenError:
    """Return the error that a client gets for an unexpected exception. The log has the details under the same id."""
    return MusicGenError(
        f"Internal server error (request {http_request_id}).", hint="The server's log has the details."
    )


def error_for_status(status: int, context: RequestContext) -> MusicGenError:
    """Return the error that replaces an error response of Starlette or BentoML."""
    match status:
        case 404:
            return errors.NotFound("There is nothing at this path.", hint="GET / is the page, /docs.json the API.")
        case 405:
            return errors.MethodNotAllowed(
                f"This path does not allow {context.method[:20]}.", hint="The Allow header lists the allowed methods."
            )
        case 413:
            return body_too_large()
        case 415:
            return errors.UnsupportedMediaType("The body must be JSON.", hint="Send Content-Type: application/json.")
        case 429:
            return errors.QueueFull("Too many requests.", hint="Retry in a moment.", retry_after=1)
        case 502 | 503 | 504:
            return errors.Unavailable("The server is unavailable.", hint="Retry in a moment.", retry_after=1)
        case _ if status < 500:
            return errors.InvalidRequest("The request is invalid.", hint="See /docs.json.")
        case _:
            return internal_error(context.id)
