"""The blocking client of the HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from musicgen_bento.client.deadline import Deadline
from musicgen_bento.client.generation import Generation
from musicgen_bento.client.stream import Stream
from musicgen_bento.client.transport import Server, Transport
from musicgen_bento.clip import Clip, ProgressCallback
from musicgen_bento.schemas import (
    GenerationOptions,
    GenerationRequest,
    ModelInfo,
    ModelList,
    StreamFormat,
    StreamRequest,
)
from musicgen_bento.validation import validate

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RETRIES = 4
LIST_TIMEOUT_SECONDS = 60.0


class MusicGenClient:
    """A client of one musicgen-bento server. Threads may share it; it keeps no connection open between calls.

    Args:
        url: the server's URL.
        timeout: seconds for one clip, from the request to its last byte; None means no limit, because a long clip on a
            CPU takes minutes. A server that stops responding is detected in either case.
        retries: number of retries after a temporary failure: a lost connection, a restarted server, or a 429 or 503
            that carries a retry time.
        headers: HTTP headers sent with every request, for a proxy that requires them.

    Raises:
        InvalidRequest: the URL is invalid.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = None,
        retries: int = DEFAULT_RETRIES,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._server = Server(url, max(0, retries), dict(headers or {}))
        self._timeout = timeout

    def generate(
        self,
        prompt: str,
        *,
        model: str | None = None,
        progress: ProgressCallback | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Clip:
        """Generate a clip and wait for it. An exception or Ctrl-C cancels the clip on the server.

        Args:
            prompt: what the music should sound like.
            model: id or alias of a model; None means the server's default.
            progress: receives each change of the progress, in this thread. An exception in it cancels the clip.
            timeout: replaces the client's timeout.
            options: duration, seed and the other fields of a request.

        Raises:
            InvalidRequest: the request is invalid; `field` names the first invalid field.
            QueueFull, Unavailable: the server cannot accept the request, also after all retries.
            Unreachable, TimedOut, InvalidResponse: no response, none in time, or none of this service.
            MusicGenError: any other error, and the base of all; it has `code`, `message`, `hint` and `field`.
        """
        return self.start(prompt, model=model, timeout=timeout, **options).result(progress)

    def start(
        self,
        prompt: str,
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """Prepare a clip that one thread waits for with `result` and another can `cancel`.

        `Generation.result` or `Generation.stream` sends the request. The arguments are those of `generate`.

        Raises:
            InvalidRequest: the request is invalid; `field` names the first invalid field.
        """
        request = validate(GenerationRequest, prompt=prompt, model=model, **options)
        return Generation(self._server, request, self._timeout if timeout is None else timeout)

    def stream(
        self,
        prompt: str,
        *,
        model: str | None = None,
        format: StreamFormat = "wav",
        progress: ProgressCallback | None = None,
        timeout: float | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Stream:
        """Wait until a clip's first audio is available and return its stream. Closing it early cancels the clip.

        Args:
            prompt: what the music should sound like.
            model: id or alias of a model; None means the server's default.
            format: wav, or pcm for the samples alone: 16-bit little-endian, channels interleaved.
            progress: receives each change of the progress until the stream begins.
            timeout: replaces the client's timeout; it covers the stream up to its last byte.
            options: as for `generate`, but `normalize` is clip (the default) or none.

        Raises:
            InvalidRequest: the request is invalid; `field` names the first invalid field.
            MusicGenError: as for `generate`, until the stream begins. For later errors see Stream.
        """
        generation, skip_header = self._prepare_stream(prompt, model, format, timeout, options)
        return generation.stream(progress, skip_header=skip_header)

    def _prepare_stream(
        self, prompt: str, model: str | None, format: StreamFormat, timeout: float | None, options: GenerationOptions
    ) -> tuple[Generation, bool]:
        """Return the generation of a stream, and whether to leave out the WAV header."""
        request = validate(StreamRequest, prompt=prompt, model=model, format=format, **options)
        # The default of a stream, sent explicitly: that of a job, loudness, needs the whole clip.
        stream_options: GenerationOptions = {**options, "normalize": request.normalize}
        generation = self.start(prompt, model=model, timeout=timeout, **stream_options)
        return generation, request.format == "pcm"

    def list_models(self) -> list[ModelInfo]:
        """Return the models that the server offers: ids, aliases, licences and states.

        Raises:
            MusicGenError: the call failed.
        """
        with Transport(self._server, Deadline(self._timeout or LIST_TIMEOUT_SECONDS)) as transport:
            return transport.request("GET", "/models").parse(ModelList).models
