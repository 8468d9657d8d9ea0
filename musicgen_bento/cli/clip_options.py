"""The options of `generate` that describe clips, turned into validated requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from musicgen_bento import validation
from musicgen_bento.errors import InvalidRequest
from musicgen_bento.schemas import GenerationRequest, StreamRequest


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """The clips to generate.

    Attributes:
        prompts: one per clip.
        model: None means the default, of the settings or of the server.
        fields: the other fields of a request that the user gave.
        format: wav or pcm, for a stream.
    """

    prompts: Sequence[str]
    model: str | None
    fields: dict[str, Any]
    format: str = "wav"

    def build_requests(self, *, model: str | None, max_duration: float | None = None) -> list[GenerationRequest]:
        """Build one request per prompt, with its seed.

        Raises:
            InvalidRequest: a prompt or an option is invalid.
        """
        return _build_requests(GenerationRequest, self.prompts, self.fields, model, max_duration)

    def build_stream_request(self, *, model: str | None, max_duration: float | None = None) -> StreamRequest:
        """Build the request of a stream, which has one prompt.

        Raises:
            InvalidRequest: the prompt or an option is invalid.
        """
        fields = {**self.fields, "format": self.format}
        [request] = _build_requests(StreamRequest, self.prompts, fields, model, max_duration)
        assert isinstance(request, StreamRequest)
        return request


def _build_requests(
    request_type: type[GenerationRequest],
    prompts: Sequence[str],
    fields: dict[str, Any],
    model: str | None,
    max_duration: float | None,
) -> list[GenerationRequest]:
    """Build requests. An error keeps a hint that helps on the command line; any other hint is replaced by --help."""
    try:
        return validation.build_requests(
            prompts, request_type=request_type, model=model, max_duration=max_duration, **fields
        )
    except InvalidRequest as error:
        names_setting = max_duration and error.field == "duration" and "MUSICGEN" in error.hint
        hint = error.hint if names_setting or error.field == "normalize" else ""
        message = error.message.removesuffix(".")
        raise InvalidRequest(f"{message}.", hint=hint or "See musicgen-bento --help.") from None
