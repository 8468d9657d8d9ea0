"""The generator: passes requests to the runner, turns the clips into responses, and reports models and readiness."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from musicgen_bento import audio, model_catalog, schemas
from musicgen_bento.config import Settings
from musicgen_bento.engine.types import Event, EventCallback, GenerationParams, Started
from musicgen_bento.errors import MusicGenError, ShuttingDown, Unavailable
from musicgen_bento.log import exception_location, logger
from musicgen_bento.runner.client import AssembledAudio, RunnerClient
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.error_responses import ErrorResponse, internal_error
from musicgen_bento.server.request_context import RequestContext, current_request
from musicgen_bento.server.response_buffer import ResponseBufferLimit
from musicgen_bento.server.responses import AudioResponse, EncodedAudio, StreamingAudioResponse, audio_headers
from musicgen_bento.server.shutdown import Drain

READINESS_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """A request that the runner has admitted, without its prompt.

    Attributes:
        http_request_id: id of the HTTP request, for the log.
        request_id: id of the request at the runner.
        model: the model's id in the catalogue, or the name that the client sent.
        seed: the client's, or a random one.
        duration: in seconds, as requested.
        normalize: how to set the level.
    """

    http_request_id: str
    request_id: str
    model: str
    seed: int
    duration: float
    normalize: schemas.Normalize


class Generator:
    """Generates clips. There is one per HTTP process.

    Args:
        runner: generates the samples.
        settings: the service's settings.
        drain: the shutdown of this process; it is not ready after its start.
        response_buffer: limits the finished audio that clients have not read yet.
    """

    def __init__(
        self, runner: RunnerClient, settings: Settings, drain: Drain, response_buffer: ResponseBufferLimit
    ) -> None:
        self._runner = runner
        self._settings = settings
        self._drain = drain
        self._response_buffer = response_buffer

    # generate() and stream() raise nothing: BentoML would log the exception with the values of the request.

    async def generate(self, request: schemas.GenerationRequest) -> Response:
        """Return the response with the whole WAV, or an error response."""
        context = current_request()

        def record_model(event: Event) -> None:
            if isinstance(event, Started):
                context.model = event.model

        try:
            self._response_buffer.check()
            admitted = await self.admit(request, context)
            encoded = await self.generate_audio(admitted, record_model)
        except MusicGenError as error:
            return ErrorResponse(error)
        return AudioResponse(encoded, self._response_buffer)

    async def stream(self, request: schemas.StreamRequest) -> Response:
        """Return the response that sends the clip while it is generated, or an error response."""
        try:
            self._response_buffer.check()
            admitted = await self.admit(request, current_request())
        except MusicGenError as error:
            return ErrorResponse(error)
        buffer = PcmBuffer(request.normalize)
        return StreamingAudioResponse(
            buffer, admitted.seed, request.format, self._fill_buffer(admitted, buffer), self._response_buffer
        )

    async def admit(self, request: schemas.GenerationRequest, context: RequestContext) -> AdmittedRequest:
        """Admit a request at the runner, and draw a seed if it has none.

        Args:
            request: a valid request.
            context: receives the model and the duration for its log line.

        Raises:
            MusicGenError: the request is refused. No other exception is raised.
        """
        name = request.model or self._settings.default_model
        card = model_catalog.find_model(name)
        context.model = card.id if card else "(other)"  # an unknown name is not logged: it may be anything
        context.duration = request.duration
        seed = secrets.randbelow(schemas.MAX_SEED + 1) if request.seed is None else request.seed
        fields = request.model_dump(exclude={"model", "normalize", "seed", "format"})
        with _hide_unexpected_errors(context.id):
            request_id = await self._runner.admit(context.id, name, GenerationParams(seed=seed, **fields))
        model = card.id if card else name
        return AdmittedRequest(context.id, request_id, model, seed, request.duration, request.normalize)

    async def generate_audio(self, admitted: AdmittedRequest, on_event: EventCallback) -> EncodedAudio:
        """Return the whole clip as a WAV. If the caller is cancelled, the request is aborted.

        Raises:
            MusicGenError: the generation failed. No other exception is raised.
        """
        with _hide_unexpected_errors(admitted.http_request_id):
            assembled = await self._runner.generate(admitted.request_id, on_event)
            wav = await asyncio.to_thread(_encode, assembled, admitted.normalize)
        return EncodedAudio(wav, audio_headers(assembled.started, admitted.seed))

    async def _fill_buffer(self, admitted: AdmittedRequest, buffer: PcmBuffer) -> None:
        """Generate a clip into a buffer, or store the error there. A cancelled caller aborts the request."""
        try:
            with _hide_unexpected_errors(admitted.http_request_id):
                await self._runner.stream_events(admitted.request_id, buffer.on_event)
        except MusicGenError as error:
            buffer.fail(error)

    async def list_models(self) -> schemas.ModelList:
        """Return the models of the catalogue and the operator's other models, with their states.

        Raises:
            MusicGenError: the runner does not respond.
        """
        statuses = {status["id"]: status for status in await self._runner.models()}
        catalogue_models = [_model_info(card, statuses.pop(card.id)) for card in model_catalog.CATALOG]
        others = [
            schemas.ModelInfo(aliases=[], conditioning=["text"], note="A model of the operator.", **status)
            for status in statuses.values()
        ]
        return schemas.ModelList(models=[*catalogue_models, *others])

    async def readiness_error(self) -> MusicGenError | None:
        """Return why the service is not ready, or None if it is. Takes at most `READINESS_TIMEOUT_SECONDS`."""
        if self._drain.started:
            return ShuttingDown()
        try:
            async with asyncio.timeout(READINESS_TIMEOUT_SECONDS):
                readiness = await self._runner.readiness()
        except MusicGenError as error:
            return error
        except TimeoutError:
            return Unavailable("The server is starting.", hint="Retry in a moment.", retry_after=2)
        if "error" in readiness:
            load_error = MusicGenError.from_dict(readiness)
            return Unavailable(load_error.message, hint=load_error.hint, retry_after=load_error.retry_after or 30)
        if not readiness["ready"]:
            return Unavailable("The models are loading.", hint="Retry in a moment.", retry_after=2)
        return None


@contextmanager
def _hide_unexpected_errors(http_request_id: str) -> Iterator[None]:
    """Raise only errors that a client may see; log and replace all others."""
    try:
        yield
    except MusicGenError as error:
        if type(error) is MusicGenError:  # unexpected, or of a class that only the runner has
            raise internal_error(http_request_id) from None
        raise error from None
    except Exception as error:
        logger.error("id=%s failed: %s", http_request_id, exception_location(error))
        raise internal_error(http_request_id) from None


def _encode(assembled: AssembledAudio, strategy: schemas.Normalize) -> bytes:
    sample_rate = assembled.started.sample_rate
    return audio.encode_wav(audio.normalize(assembled.samples, sample_rate, strategy), sample_rate)


def _model_info(card: model_catalog.ModelCard, status: dict[str, Any]) -> schemas.ModelInfo:
    return schemas.ModelInfo(
        aliases=list(card.aliases),
        channels=card.channels,
        sample_rate=card.sample_rate,
        conditioning=list(card.conditioning),
        window=card.window,
        parameters=card.parameters,
        license=card.license,
        download_bytes=card.download_bytes,
        note=card.note,
        **status,
    )
