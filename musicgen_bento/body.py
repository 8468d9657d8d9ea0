"""Request bodies: bytes to a model, or an error that names the field and never repeats a value."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers

from musicgen_bento.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

MAX_BODY = 1024 * 1024
MAX_MESSAGES = 5


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
        raise invalid(error, kind) from None
    # The last of two would win silently. Only what is valid gets here, so it is flat and small.
    json.loads(body, object_pairs_hook=_refuse_twice)
    return model


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise InvalidRequest(f"{name} is given twice.", hint="Give each field once.", field=name)
        seen.add(name)


def invalid(error: ValidationError, kind: type[BaseModel]) -> InvalidRequest:
    """What pydantic found, in words for people and without the values."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    first = faults[0]
    field = str(first["loc"][0])[:100] if first["loc"] else None
    messages = [_message(fault["type"], fault["loc"], fault["msg"]) for fault in faults[:MAX_MESSAGES]]
    if len(faults) > MAX_MESSAGES:
        messages.append(f"and {len(faults) - MAX_MESSAGES} more")
    return InvalidRequest("; ".join(messages), hint=_hint(first["type"], kind), field=field)


def _message(fault: str, loc: tuple[int | str, ...], text: str) -> str:
    name = str(loc[0])[:100] if loc else "The body"
    match fault:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            return "there is a field that this service does not know"
        case "json_invalid":
            return f"The body is not valid JSON{text.removeprefix('Invalid JSON')}"
        case "string_too_short" | "string_pattern_mismatch":
            return f"{name} should hold some text and no control characters"
        case "model_type" | "model_attributes_type":
            return "The body should be a JSON object"
        case _:
            return text.replace("Input", name, 1) if text.startswith("Input") else f"{name}: {text}"


def _hint(fault: str, kind: type[BaseModel]) -> str:
    match fault:
        case "json_invalid" | "model_type" | "model_attributes_type":
            return 'Send a JSON object, such as {"prompt": "calm piano", "duration": 10}.'
        case "missing" | "extra_forbidden":
            return f"The fields are {', '.join(kind.model_fields)}."
        case _:
            return "See /docs.json for what each field takes."
