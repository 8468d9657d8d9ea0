"""Build validated requests, and describe pydantic's errors without the values of the fields."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, TypeVar, Unpack

from pydantic import BaseModel, ValidationError

from musicgen_bento.errors import InvalidRequest
from musicgen_bento.schemas import MAX_SEED, GenerationOptions, GenerationRequest

MAX_MESSAGES = 5
MAX_NAME_CHARACTERS = 100

Model = TypeVar("Model", bound=BaseModel)


def validate(model_type: type[Model], **fields: Any) -> Model:
    """Build a pydantic model from its fields.

    Raises:
        InvalidRequest: a field is missing, unknown or invalid; `field` names the first one.
    """
    try:
        return model_type(**fields)
    except ValidationError as error:
        raise invalid_request(error, model_type) from None


def invalid_request(error: ValidationError, model_type: type[BaseModel]) -> InvalidRequest:
    """Convert a validation error: the fields at fault, at most `MAX_MESSAGES` of them, and a hint for the first."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    first = faults[0]
    field = str(first["loc"][0])[:MAX_NAME_CHARACTERS] if first["loc"] else None
    messages = [_message(fault["type"], fault["loc"], fault["msg"]) for fault in faults[:MAX_MESSAGES]]
    if len(faults) > MAX_MESSAGES:
        messages.append(f"and {len(faults) - MAX_MESSAGES} more")
    return InvalidRequest("; ".join(messages), hint=_hint(first["type"], model_type, field), field=field)


def _message(fault: str, loc: tuple[int | str, ...], text: str) -> str:
    name = str(loc[0])[:MAX_NAME_CHARACTERS] if loc else "The body"
    match fault:
        case "missing":
            return f"{name} is missing"
        case "extra_forbidden":
            return "a field is unknown to this server"
        case "json_invalid":
            return f"The body is not valid JSON{text.removeprefix('Invalid JSON')}"
        case "string_too_short" | "string_pattern_mismatch":
            return f"{name} must contain text and no control characters"
        case "model_type" | "model_attributes_type":
            return "The body must be a JSON object"
        case _:
            return text.replace("Input", name, 1) if text.startswith("Input") else f"{name}: {text}"


def _hint(fault: str, model_type: type[BaseModel], field: str | None) -> str:
    match fault:
        case "json_invalid" | "model_type" | "model_attributes_type":
            return 'Send a JSON object, such as {"prompt": "calm piano", "duration": 10}.'
        case "missing" | "extra_forbidden":
            return f"The fields are {', '.join(model_type.model_fields)}."
        case "literal_error" if description := field and model_type.model_fields[field].description:
            return f"The choices are {description}"
        case _:
            return "See /docs.json for the allowed values of each field."


def build_requests(
    prompts: Sequence[str],
    *,
    request_type: type[GenerationRequest] = GenerationRequest,
    model: str | None = None,
    max_duration: float | None = None,
    **options: Unpack[GenerationOptions],
) -> list[GenerationRequest]:
    """Build one request per prompt. The seeds count up from `seed`, or from a random number if it is None.

    Args:
        prompts: at least one.
        request_type: the class of the requests.
        model: the model of all requests.
        max_duration: the maximum duration in seconds; None leaves the check to the server.
        options: the other fields of all requests.

    Raises:
        InvalidRequest: a prompt or an option is invalid, or there is no prompt.
    """
    if not prompts:
        raise InvalidRequest("There is no prompt.", hint="Give at least one prompt.", field="prompt")
    requests = [_build_request(request_type, prompts, index, model, options) for index in range(len(prompts))]
    duration, seed = requests[0].duration, requests[0].seed
    if max_duration is not None and duration > max_duration:
        raise InvalidRequest(
            f"duration is {duration:g} s; the maximum is {max_duration:g} s.",
            hint="MUSICGEN_MAX_DURATION sets the maximum.",
            field="duration",
        )
    first_seed = secrets.randbelow(MAX_SEED + 1) if seed is None else seed
    return [
        request.model_copy(update={"seed": (first_seed + index) % (MAX_SEED + 1)})
        for index, request in enumerate(requests)
    ]


def _build_request(
    request_type: type[GenerationRequest],
    prompts: Sequence[str],
    index: int,
    model: str | None,
    options: GenerationOptions,
) -> GenerationRequest:
    """Build the request of one prompt. The error of one of several prompts gives its number."""
    try:
        return validate(request_type, prompt=prompts[index], model=model, **options)
    except InvalidRequest as error:
        if len(prompts) == 1 or error.field != "prompt":
            raise
        message = f"Prompt {index + 1} of {len(prompts)}: {error.message}"
        raise InvalidRequest(message, hint=error.hint, field=error.field) from None
