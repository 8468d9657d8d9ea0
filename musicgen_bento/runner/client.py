"""The runner as the front sees it: every failure is a MusicGenError, and nothing asked for is left behind."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import numpy as np
from bentoml.exceptions import BentoMLException

from musicgen_bento.engine.types import (
    AudioChunk,
    Event,
    EventCallback,
    Failed,
    Finished,
    GenerationParams,
    Samples,
    Started,
)
from musicgen_bento.errors import GenerationFailed, MusicGenError, ShuttingDown, Unavailable
from musicgen_bento.runner.protocol import FrameDecoder
from musicgen_bento.runner.request_table import AdmitMsg

Result = TypeVar("Result")
ASK_SECONDS = 10.0
CANCEL_SECONDS = 2.0  # somebody waits for an error meanwhile
Dropped = (aiohttp.ClientError, OSError)


@dataclass(frozen=True, slots=True)
class Clip:
    """A whole clip, not normalised. `samples` is [C, T]."""

    samples: Samples
    sample_rate: int
    model: str


class RunnerClient:
    """Calls to the runner.

    Args:
        proxy: what `bentoml.depends` gave.
        is_draining: whether this process is shutting down, and the runner with it.
    """

    def __init__(self, proxy: Any, is_draining: Callable[[], bool]) -> None:
        self._calls = proxy.to_async
        self._is_draining = is_draining

    async def admit(self, request: str, model: str, params: GenerationParams) -> str:
        """Have a clip taken in, and give the ticket to collect it with. If the caller is cancelled, so is the clip.

        Args:
            request: the request's id, for the runner's log.
            model: as the client spelled it.
            params: what to make.

        Raises:
            MusicGenError: it is not taken.
        """
        # Chosen here: it can be cancelled even where the answer was lost.
        ticket = f"{request}-{uuid.uuid4().hex}"
        async with self._whole_or_cancelled(ticket):
            answers = await self._ask(lambda: self._calls.admit([AdmitMsg(ticket=ticket, model=model, params=params)]))
        if "error" in answers[0]:
            raise MusicGenError.from_dict(answers[0])
        return ticket

    async def collect(self, ticket: str, listen: EventCallback) -> Clip:
        """The whole clip. If the caller is cancelled, so is the clip.

        Args:
            ticket: what `admit` gave.
            listen: told of every event.

        Raises:
            MusicGenError: it could not be made.
        """
        clip: Clip | None = None

        def assemble(event: Event) -> None:
            nonlocal clip
            listen(event)
            match event:
                case Started():
                    samples = np.zeros((event.channels, event.samples), np.float32)
                    clip = Clip(samples, event.sample_rate, event.model)
                case AudioChunk(samples, position) if clip:
                    clip.samples[:, position : position + samples.shape[1]] = samples

        await self.follow(ticket, assemble)
        if clip is None:
            raise self._lost()
        return clip

    async def follow(self, ticket: str, listen: EventCallback) -> None:
        """Everything that happens to a clip, up to its end. If the caller is cancelled, so is the clip.

        Args:
            ticket: what `admit` gave.
            listen: told of every event.

        Raises:
            MusicGenError: it could not be made.
        """
        async with self._whole_or_cancelled(ticket):
            await self._follow(ticket, listen)

    async def models(self) -> list[dict[str, Any]]:
        """Every model, as ModelStatus has it."""
        return list(await self._ask(lambda: self._calls.models()))

    async def readiness(self) -> dict[str, Any]:
        """`{"ready": bool}`, or `{"error": ...}`."""
        return dict(await self._ask(lambda: self._calls.readiness()))

    @asynccontextmanager
    async def _whole_or_cancelled(self, ticket: str) -> AsyncIterator[None]:
        """Whatever ends the block early ends the clip, too."""
        try:
            yield
        except BaseException:
            await asyncio.shield(self._cancel(ticket))
            raise

    async def _cancel(self, ticket: str) -> None:
        with suppress(MusicGenError):  # a runner that is gone has no slots to free
            await self._ask(lambda: self._calls.cancel(ticket), CANCEL_SECONDS)

    async def _ask(self, call: Callable[[], Awaitable[Result]], seconds: float = ASK_SECONDS) -> Result:
        """A short call. A runner that does not answer is as good as gone: its socket stays open without it."""
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except (*Dropped, TimeoutError, BentoMLException):
            raise self._lost() from None

    async def _follow(self, ticket: str, listen: EventCallback) -> None:
        try:
            async with aclosing(self._events(ticket)) as events:
                async for event in events:
                    listen(event)
                    match event:
                        case Failed(error):
                            raise error
                        case Finished():
                            return
        except (*Dropped, TimeoutError, BentoMLException):
            raise self._lost() from None
        except ValueError:
            raise GenerationFailed("The runner's answer could not be read.", hint="Try again.") from None
        raise self._lost()  # the stream ended before the clip did

    async def _events(self, ticket: str) -> Any:
        decoder = FrameDecoder()
        async with aclosing(self._calls.stream(ticket)) as pieces:
            async for piece in pieces:
                for event in decoder.feed(piece):
                    yield event

    def _lost(self) -> MusicGenError:
        if self._is_draining():
            return ShuttingDown("The server is shutting down.", hint="Try again later.", retry_after=5)
        return Unavailable("The process that makes the music has gone.", hint="It is started again.", retry_after=10)


def remove_session_limits(proxy: Any) -> None:
    """Give a proxy a session without its limits. Call it on the running loop, before the first call.

    BentoML's own holds 100 connections: with as many clips in the making a cancellation would wait for one
    of them to end. It cuts a call off after `traffic.timeout`, streaming or not. And it keeps connections, which
    the runner closes after 5 s without a call, now and then at the moment one is used again; a new one over a
    unix socket costs nothing that can be measured.
    """
    from bentoml._internal.utils.uri import uri_to_path

    calls: Any = getattr(proxy, "to_async", None)
    manager: Any = getattr(calls, "_session_manager", None)
    if manager is None or not calls.url.startswith("file:"):
        return  # the runner is in this process, or not on a socket of BentoML's
    manager._session = aiohttp.ClientSession(
        base_url="http://runner",
        headers=manager._headers,
        timeout=aiohttp.ClientTimeout(total=None),
        connector=aiohttp.UnixConnector(path=uri_to_path(calls.url), limit=0, force_close=True),
    )
    manager._created_at = time.monotonic()
