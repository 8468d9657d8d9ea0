"""Request bodies: bytes to a model, or an error that names the field and never repeats a value."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers

from musicgen_bento.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from musicgen_bento.validation import invalid_request

MAX_BODY = 1024 * 1024


def check_headers(headers: Headers) -> None:
    """Refuse what the headers alone are enough to refuse, before a byte of the body is read.

    Raises:
        BodyTooLarge, UnsupportedMediaType: as they say.
    """
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > MAX_BODY:
        raise BodyTooLarge("The body is too large.", hint=f"At most {MAX_BODY} bytes.")
    empty = length == "0" or (not length and "transfer-encoding" not in headers)
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    # A web page of another origin can send any other type without asking first; this one it cannot.
    if kind != "application/json" and not (empty and not kind):
        raise UnsupportedMediaType("The body must be JSON.", hint="Send Content-Type: application/json.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("The body must not be compressed.", hint="Send it without Content-Encoding.")


def parse(body: bytes, kind: type[BaseModel] | None) -> BaseModel | None:
    """The body as a model; for `None`, only an empty body or an empty object will do.

    Raises:
        InvalidRequest: it is none; `field` is the first field at fault.
    """
    if kind is None:
        if body.strip() not in (b"", b"{}"):
            raise InvalidRequest("This address takes no fields.", hint="Send {} or nothing.")
        return None
    try:
        model = kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid_request(error, kind) from None
    # The last of two would win silently. Only what is valid gets here, so it is flat and small.
    json.loads(body, object_pairs_hook=_refuse_twice)
    return model


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidRequest(f"{name} is given twice.", hint="Give each field once.", field=name)
        seen.add(name)
