"""Several prompts at once: a request for each, and a file."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

from musicgen_bento.errors import InvalidRequest
from musicgen_bento.schemas import MAX_SEED, GenerationOptions, GenerationRequest
from musicgen_bento.validation import validate


def build_requests(
    prompts: Sequence[str],
    *,
    kind: type[GenerationRequest] = GenerationRequest,
    model: str | None = None,
    longest: float | None = None,
    **options: Unpack[GenerationOptions],
) -> list[GenerationRequest]:
    """A request for each prompt. The seed counts up from the first one's, which is drawn where there is none.

    Args:
        prompts: one or more.
        kind: of the requests.
        model: for all of them.
        longest: seconds a clip may have; None leaves that to the server.
        options: for all of them.

    Raises:
        InvalidRequest: a prompt or an option is wrong, or there is no prompt.
    """
    if not prompts:
        raise InvalidRequest("There is no prompt.", hint="Give one, or several.", field="prompt")
    asked = [_request(kind, prompts, index, model, options) for index in range(len(prompts))]
    if longest is not None and asked[0].duration > longest:
        raise InvalidRequest(
            f"duration is {asked[0].duration:g} s and the longest is {longest:g} s.",
            hint="MUSICGEN_MAX_DURATION sets it.",
            field="duration",
        )
    first = secrets.randbelow(MAX_SEED + 1) if asked[0].seed is None else asked[0].seed
    return [
        request.model_copy(update={"seed": (first + index) % (MAX_SEED + 1)}) for index, request in enumerate(asked)
    ]


def _request(
    kind: type[GenerationRequest], prompts: Sequence[str], index: int, model: str | None, options: GenerationOptions
) -> GenerationRequest:
    try:
        return validate(kind, prompt=prompts[index], model=model, **options)
    except InvalidRequest as error:
        if len(prompts) == 1 or error.field != "prompt":
            raise
        message = f"Prompt {index + 1} of {len(prompts)}: {error.message}"
        raise InvalidRequest(message, hint=error.hint, field=error.field) from None


def numbered_paths(path: Path, count: int) -> list[Path]:
    """The file of one clip, or those of several: `lofi-01.wav` to `lofi-12.wav`."""
    if count == 1:
        return [path]
    width = len(str(count))
    return [path.with_name(f"{path.stem}-{number:0{width}}{path.suffix}") for number in range(1, count + 1)]
