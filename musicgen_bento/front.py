"""What the front does with a valid request: asks the runner, writes the WAV, names things for people."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from musicgen_bento import audio, catalogue, schemas
from musicgen_bento.config import Settings
from musicgen_bento.drain import Drain
from musicgen_bento.engine.types import GenerationParams, Started
from musicgen_bento.errors import MusicGenError, ShuttingDown, Unavailable
from musicgen_bento.exchange import exchange, refuse, unexpected
from musicgen_bento.quiet import where
from musicgen_bento.remote import Clip, Remote

READY_SECONDS = 1.0

_log = logging.getLogger("bentoml.musicgen")


class Front:
    """One per front process.

    Args:
        remote: the runner.
        settings: of the service.
        drain: while it lasts the front is not ready.
    """

    def __init__(self, remote: Remote, settings: Settings, drain: Drain) -> None:
        self._remote = remote
        self._settings = settings
        self._drain = drain

    async def generate(self, request: schemas.GenerationRequest) -> Response:
        """The whole WAV, or a refusal. Raises nothing: BentoML would log it with the values it met."""
        current = exchange()
        name = request.model or self._settings.default_model
        card = catalogue.find(name)
        current.model = card.id if card else "(other)"  # a client may write anything there
        current.duration = request.duration
        seed = secrets.randbelow(schemas.MAX_SEED + 1) if request.seed is None else request.seed
        asked = request.model_dump(exclude={"model", "normalize", "seed"})

        def started(event: Started) -> None:
            current.model = event.model

        try:
            clip = await self._remote.clip(current.id, name, GenerationParams(seed=seed, **asked), started)
            wav = await asyncio.to_thread(_wav, clip, request.normalize)
        except MusicGenError as error:
            return refuse(unexpected(current) if type(error) is MusicGenError else error)
        except Exception as error:
            _log.error("id=%s failed: %s", current.id, where(error))
            return refuse(unexpected(current))
        return Response(wav, media_type="audio/wav", headers=_headers(clip, seed))

    async def models(self) -> schemas.ModelList:
        """The catalogue, with the state of each model.

        Raises:
            MusicGenError: the runner does not answer.
        """
        statuses = {entry["id"]: entry for entry in await self._remote.models()}
        listed = [_info(card, statuses.pop(card.id)) for card in catalogue.CATALOGUE]
        others = [
            schemas.ModelInfo(aliases=[], conditioning=["text"], note="The operator's own.", **entry)
            for entry in statuses.values()
        ]
        return schemas.ModelList(models=[*listed, *others])

    async def unready(self) -> MusicGenError | None:
        """Why the service is not ready yet, or not any more; answers within a second."""
        if self._drain.begun:
            return ShuttingDown("The server is shutting down.", hint="Try again later.", retry_after=5)
        try:
            async with asyncio.timeout(READY_SECONDS):
                state = await self._remote.readiness()
        except MusicGenError as error:
            return error
        except TimeoutError:
            return Unavailable("The service is starting.", hint="Try again in a moment.", retry_after=2)
        if "error" in state:
            kept_out = MusicGenError.from_dict(state)
            return Unavailable(kept_out.message, hint=kept_out.hint, retry_after=kept_out.retry_after)
        if not state["ready"]:
            return Unavailable("The models are loading.", hint="Try again in a moment.", retry_after=2)
        return None


def _info(card: catalogue.ModelCard, status: dict[str, Any]) -> schemas.ModelInfo:
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


def _wav(clip: Clip, how: schemas.Normalize) -> bytes:
    return audio.encode_wav(audio.normalize(clip.samples, clip.sample_rate, how), clip.sample_rate)


def _headers(clip: Clip, seed: int) -> dict[str, str]:
    channels, samples = clip.samples.shape
    return {
        "X-Seed": str(seed),
        "X-Model": quote(clip.model, safe="/:@+ "),
        "X-Audio-Sample-Rate": str(clip.sample_rate),
        "X-Audio-Channels": str(channels),
        "X-Audio-Duration": f"{samples / clip.sample_rate:.3f}",
    }
