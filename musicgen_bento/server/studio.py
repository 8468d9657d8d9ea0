"""From a valid request to music: taken in by the runner, made, brought to its level, written as a WAV. In memory."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote

from musicgen_bento import audio, model_catalog, schemas
from musicgen_bento.config import Settings
from musicgen_bento.engine.types import EventCallback, GenerationParams, Started
from musicgen_bento.errors import MusicGenError
from musicgen_bento.log import exception_location
from musicgen_bento.runner.client import Clip, RunnerClient
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.request_context import RequestContext, unexpected

_log = logging.getLogger("bentoml.musicgen")


@dataclass(frozen=True, slots=True)
class AdmittedRequest:
    """A clip that the runner has taken in, and what is known of it by then. Not the prompt.

    Attributes:
        id: of the request that brought it, for the log.
        ticket: to collect it with.
        model: its catalogue id, or what the client called it.
        seed: asked for or drawn.
        duration: in seconds, as asked for.
        normalize: how to set the level.
    """

    id: str
    ticket: str
    model: str
    seed: int
    duration: float
    normalize: schemas.Normalize


@dataclass(frozen=True, slots=True)
class EncodedAudio:
    """A finished clip, as a client gets it."""

    wav: bytes
    headers: dict[str, str]


class Generator:
    """Has clips made.

    Args:
        remote: the runner.
        settings: of the service.
    """

    def __init__(self, remote: RunnerClient, settings: Settings) -> None:
        self._remote = remote
        self._settings = settings

    async def take(self, request: schemas.GenerationRequest, current: RequestContext) -> AdmittedRequest:
        """Give a clip a place at the runner, and `current` what its log line says. Draws a seed where there is none.

        Raises:
            MusicGenError: it is not taken. Nothing else: BentoML would log it with the values it met.
        """
        name = request.model or self._settings.default_model
        card = model_catalog.find_model(name)
        current.model = card.id if card else "(other)"  # a client may write anything there
        current.duration = request.duration
        seed = secrets.randbelow(schemas.MAX_SEED + 1) if request.seed is None else request.seed
        asked = request.model_dump(exclude={"model", "normalize", "seed", "format"})
        with _foreseen(current.id):
            ticket = await self._remote.admit(current.id, name, GenerationParams(seed=seed, **asked))
        return AdmittedRequest(current.id, ticket, card.id if card else name, seed, request.duration, request.normalize)

    async def make(self, order: AdmittedRequest, listen: EventCallback) -> EncodedAudio:
        """The clip, whole. If the caller is cancelled, so is the clip.

        Args:
            order: what `take` gave.
            listen: told of every event.

        Raises:
            MusicGenError: it could not be made. Nothing else.
        """
        with _foreseen(order.id):
            clip = await self._remote.collect(order.ticket, listen)
            wav = await asyncio.to_thread(_wav, clip, order.normalize)
        return EncodedAudio(wav, headers(Started(clip.model, clip.sample_rate, *clip.samples.shape), order.seed))

    async def record(self, order: AdmittedRequest, recording: PcmBuffer) -> None:
        """The clip, as it is made. If the caller is cancelled, so is the clip.

        Args:
            order: what `take` gave.
            recording: takes it in, and is told where there will be no more of it. This raises nothing.
        """
        try:
            with _foreseen(order.id):
                await self._remote.follow(order.ticket, recording.listen)
        except MusicGenError as error:
            recording.fail(error)


@contextmanager
def _foreseen(request: str) -> Iterator[None]:
    """Lets out nothing but errors that a client may see."""
    try:
        yield
    except MusicGenError as error:
        raise unexpected(request) if type(error) is MusicGenError else error from None
    except Exception as error:
        _log.error("id=%s failed: %s", request, exception_location(error))
        raise unexpected(request) from None


def _wav(clip: Clip, how: schemas.Normalize) -> bytes:
    return audio.encode_wav(audio.normalize(clip.samples, clip.sample_rate, how), clip.sample_rate)


def headers(started: Started, seed: int) -> dict[str, str]:
    """What an answer says of its clip."""
    return {
        "X-Seed": str(seed),
        "X-Model": quote(started.model, safe="/:@+ "),
        "X-Audio-Sample-Rate": str(started.sample_rate),
        "X-Audio-Channels": str(started.channels),
        "X-Audio-Duration": f"{started.samples / started.sample_rate:.3f}",
    }
