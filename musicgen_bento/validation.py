"""What pydantic finds wrong with a request, in words for people and without the values."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from musicgen_bento.errors import InvalidRequest

MAX_MESSAGES = 5

Model = TypeVar("Model", bound=BaseModel)


def validate(kind: type[Model], **fields: Any) -> Model:
    """A model of these fields.

    Raises:
        InvalidRequest: it is none; `field` is the first field at fault.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        raise invalid_request(error, kind) from None


def invalid_request(error: ValidationError, kind: type[BaseModel]) -> InvalidRequest:
    """The error for a client: what is wrong with which fields, five at most, and the way out."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    first = faults[0]
    field = str(first["loc"][0])[:100] if first["loc"] else None
    messages = [_message(fault["type"], fault["loc"], fault["msg"]) for fault in faults[:MAX_MESSAGES]]
    if len(faults) > MAX_MESSAGES:
        messages.append(f"and {len(faults) - MAX_MESSAGES} more")
    return InvalidRequest("; ".join(messages), hint=_hint(first["type"], kind, field), field=field)


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


def _hint(fault: str, kind: type[BaseModel], field: str | None) -> str:
    match fault:
        case "json_invalid" | "model_type" | "model_attributes_type":
            return 'Send a JSON object, such as {"prompt": "calm piano", "duration": 10}.'
        case "missing" | "extra_forbidden":
            return f"The fields are {', '.join(kind.model_fields)}."
        case "literal_error" if about := field and kind.model_fields[field].description:
            return f"The choices are {about}"
        case _:
            return "See /docs.json for what each field takes."
