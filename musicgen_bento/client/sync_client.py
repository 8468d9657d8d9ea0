"""The client of the HTTP API, for Python programs. Needs requests and pydantic alone; docs/sdk.md shows its use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

from musicgen_bento.client.generation import Generation
from musicgen_bento.client.stream import Stream
from musicgen_bento.client.transport import (
    Deadline,
    Server,
    Transport,
)
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
LIST_SECONDS = 60.0
RETRIES = 4


class MusicGenClient:
    """A musicgen-bento server. May be used by several threads at once, and holds nothing open between calls.

    Args:
        url: the server's address.
        timeout: seconds a clip may take, from the request to its last byte; None is no limit, as a long clip on a CPU
            takes as long as it takes. A server that falls silent is noticed all the same.
        retries: how often what failed in passing is done again: a connection that broke, a server that was started
            again, 429 and 503 that say when to come back.
        headers: sent with every request, for a proxy that wants them.

    Raises:
        InvalidRequest: the address is none.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = None,
        retries: int = RETRIES,
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
        """Have a clip made, and wait for it. Whoever leaves, by an exception or Ctrl-C, cancels it on the server.

        Args:
            prompt: what it should sound like.
            model: a model by id or alias; None is the server's default.
            progress: told the state, the position in the queue, the seconds of audio made, and of how many.
            timeout: instead of the client's.
            options: duration, seed and the rest of the request's fields.

        Raises:
            InvalidRequest: the request is wrong; `field` says where.
            QueueFull, Unavailable: the server cannot take it now, after all retries.
            Unreachable, TimedOut, BadAnswer: no answer, not in time, or not this service's.
            MusicGenError: of which all are; it carries `code`, `message`, `hint` and `field`.
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
        """The same, for a thread that waits (`result`) and another that may change its mind (`cancel`).

        Nothing is asked of the server before `result` is.

        Raises:
            InvalidRequest: the request is wrong; `field` says where.
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
        """Have a clip made, and get its bytes while it is. Waits until it has begun. Whoever closes the stream before
        its end cancels the clip.

        Args:
            prompt: what it should sound like.
            model: a model by id or alias; None is the server's default.
            format: wav; or pcm, its samples alone: 16-bit little-endian, the channels in turn.
            progress: told whatever changes until it has begun.
            timeout: instead of the client's, from here to the last byte.
            options: as `generate` has them; `normalize` is clip or none.

        Raises:
            InvalidRequest: the request is wrong; `field` says where.
            MusicGenError: as `generate` raises, until it has begun. After that, see Stream.
        """
        generation, samples = self._streamed(prompt, model, format, timeout, options)
        return generation.stream(progress, samples=samples)

    def _streamed(
        self, prompt: str, model: str | None, format: StreamFormat, timeout: float | None, options: GenerationOptions
    ) -> tuple[Generation, bool]:
        asked = validate(StreamRequest, prompt=prompt, model=model, format=format, **options)
        # Its own default: a job's needs the whole clip.
        level: GenerationOptions = {**options, "normalize": asked.normalize}
        return self.start(prompt, model=model, timeout=timeout, **level), asked.format == "pcm"

    def list_models(self) -> list[ModelInfo]:
        """The models the server offers: ids, other spellings, licences, and whether each is loaded.

        Raises:
            MusicGenError: it does not say.
        """
        with Transport(self._server, Deadline(self._timeout or LIST_SECONDS)) as calls:
            return calls.ask("GET", "/models").read(ModelList).models
