"""What the front answers: a clip, whole or while it is made, the models, whether it is ready."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.responses import Response

from musicgen_bento import model_catalog, schemas
from musicgen_bento.engine.types import Event, Started
from musicgen_bento.errors import MusicGenError, ShuttingDown, Unavailable
from musicgen_bento.runner.client import RunnerClient
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.request_context import exchange, refuse
from musicgen_bento.server.responses import Streamed, Whole
from musicgen_bento.server.shutdown import Drain
from musicgen_bento.server.studio import AdmittedRequest, Generator
from musicgen_bento.server.unread import ResponseBufferLimit

READY_SECONDS = 1.0


class Front:
    """One per front process.

    Args:
        remote: the runner.
        studio: has clips made there.
        drain: while it lasts the front is not ready.
        unread: the finished clips that are being read.
    """

    def __init__(self, remote: RunnerClient, studio: Generator, drain: Drain, unread: ResponseBufferLimit) -> None:
        self._remote = remote
        self._studio = studio
        self._drain = drain
        self._unread = unread

    async def generate(self, request: schemas.GenerationRequest) -> Response:
        """The whole WAV, or a refusal. Raises nothing: BentoML would log it with the values it met."""
        current = exchange()

        def listen(event: Event) -> None:
            if isinstance(event, Started):
                current.model = event.model

        try:
            self._unread.check()
            music = await self._studio.make(await self._studio.take(request, current), listen)
        except MusicGenError as error:
            return refuse(error)
        return Whole(music, self._unread)

    async def stream(self, request: schemas.StreamRequest) -> Response:
        """The clip while it is made, or a refusal. Raises nothing, as above."""
        try:
            self._unread.check()
            order = await self._studio.take(request, exchange())
        except MusicGenError as error:
            return refuse(error)
        recording = PcmBuffer(request.normalize)
        return Streamed(recording, order.seed, request.format, self._record(order, recording))

    async def _record(self, order: AdmittedRequest, recording: PcmBuffer) -> None:
        await self._studio.record(order, recording)
        with self._unread.holding(recording.held):
            await asyncio.Event().wait()  # until the reader has it or has left, which cancels this

    async def models(self) -> schemas.ModelList:
        """The catalogue, with the state of each model.

        Raises:
            MusicGenError: the runner does not answer.
        """
        statuses = {entry["id"]: entry for entry in await self._remote.models()}
        listed = [_info(card, statuses.pop(card.id)) for card in model_catalog.CATALOG]
        others = [
            schemas.ModelInfo(aliases=[], conditioning=["text"], note="The operator's own.", **entry)
            for entry in statuses.values()
        ]
        return schemas.ModelList(models=[*listed, *others])

    async def unready(self) -> MusicGenError | None:
        """Why the service is not ready yet, or not any more; answers within a second."""
        if self._drain.started:
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
            return Unavailable(kept_out.message, hint=kept_out.hint, retry_after=kept_out.retry_after or 30)
        if not state["ready"]:
            return Unavailable("The models are loading.", hint="Try again in a moment.", retry_after=2)
        return None


def _info(card: model_catalog.ModelCard, status: dict[str, Any]) -> schemas.ModelInfo:
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
