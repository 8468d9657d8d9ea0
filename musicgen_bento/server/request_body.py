"""Request bodies: read and check them before BentoML does, which logs the values that it refuses.

An error names the field at fault and never contains a value.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from musicgen_bento.errors import BodyTooLarge, InvalidRequest, RequestTimeout, UnsupportedMediaType
from musicgen_bento.validation import invalid_request

MAX_BODY_BYTES = 1024 * 1024
BODY_SECONDS = 30.0
DISCARD_SECONDS, DISCARD_BYTES = 2.0, 64 * 1024 * 1024


def check_headers(headers: Headers) -> None:
    """Refuse a request by its headers, before any byte of its body is read.

    Raises:
        BodyTooLarge: Content-Length exceeds `MAX_BODY_BYTES`.
        UnsupportedMediaType: the body is not JSON, or it is compressed.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
        raise body_too_large()
    empty = length == "0" or (not length and "transfer-encoding" not in headers)
    media_type = headers.get("content-type", "").split(";")[0].strip().lower()
    # A web page of another origin can send other content types without a preflight request, but not this one.
    if media_type != "application/json" and not (empty and not media_type):
        raise UnsupportedMediaType("The body must be JSON.", hint="Send Content-Type: application/json.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("The body must not be compressed.", hint="Send it without Content-Encoding.")


async def read_body(receive: Receive) -> bytes | None:
    """Return the whole body, or None if the client disconnects before its end.

    Raises:
        BodyTooLarge: as soon as more than `MAX_BODY_BYTES` have arrived.
        RequestTimeout: the body is not complete within `BODY_SECONDS`.
    """
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_all(receive)
    except TimeoutError:
        raise RequestTimeout(
            "Timed out reading the request body.", hint=f"Send the whole body within {BODY_SECONDS:g} seconds."
        ) from None


async def _read_all(receive: Receive) -> bytes | None:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise body_too_large()
        if not message.get("more_body", False):
            return b"".join(parts)


def parse_body(body: bytes, model_type: type[BaseModel] | None) -> BaseModel | None:
    """Parse a JSON body. Where `model_type` is None, the body must be empty or `{}`.

    Raises:
        InvalidRequest: the body is invalid; `field` names the first field at fault.
    """
    if model_type is None:
        if body.strip() not in (b"", b"{}"):
            raise InvalidRequest("This endpoint has no fields.", hint="Send {} or an empty body.")
        return None
    try:
        model = model_type.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error, model_type) from None
    # JSON parsers silently use the last of two equal names. A valid body is flat and small, so parsing twice is cheap.
    json.loads(body, object_pairs_hook=_refuse_duplicates)
    return model


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise InvalidRequest(f"{name} occurs twice.", hint="Send each field once.", field=name)
        names.add(name)


def replay_body(body: bytes, disconnected: asyncio.Future[None]) -> Receive:
    """Return an ASGI `receive` that gives a body that has been read already, then waits for the disconnect.

    Args:
        body: the whole body.
        disconnected: ends when the client disconnects.
    """
    replayed = False

    async def receive() -> Message:
        nonlocal replayed
        if not replayed:
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.wait((disconnected,))
        return {"type": "http.disconnect"}

    return receive


async def discard_body(receive: Receive) -> None:
    """Read and drop the rest of a body, for at most `DISCARD_SECONDS` and about `DISCARD_BYTES`."""
    size = 0
    try:
        async with asyncio.timeout(DISCARD_SECONDS):
            while size < DISCARD_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client disconnects. No other task may receive at the same time."""
    while (await receive())["type"] != "http.disconnect":
        pass


def body_too_large() -> BodyTooLarge:
    """Return the error of a body of more than `MAX_BODY_BYTES`."""
    return BodyTooLarge("The body is too large.", hint=f"The maximum is {MAX_BODY_BYTES} bytes.")
