"""Calls of the HTTP process to the runner.

Every failure becomes a MusicGenError. A request whose caller fails or is cancelled is aborted at the runner.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from bentoml.exceptions import BentoMLException

from musicgen_bento.engine.audio_assembler import AudioAssembler
from musicgen_bento.engine.types import Event, EventCallback, Failed, Finished, GenerationParams, Samples, Started
from musicgen_bento.errors import GenerationFailed, MusicGenError, ShuttingDown, Unavailable
from musicgen_bento.runner.protocol import AdmitMsg, FrameDecoder

Result = TypeVar("Result")
CALL_TIMEOUT_SECONDS = 10.0
ABORT_TIMEOUT_SECONDS = 2.0  # short: the client may be waiting for the error that caused the abort
CONNECTION_ERRORS = (aiohttp.ClientError, OSError)


@dataclass(frozen=True, slots=True)
class AssembledAudio:
    """The complete audio of a request.

    Attributes:
        started: names the model and the audio format.
        samples: [C, T], not normalized.
    """

    started: Started
    samples: Samples


class RunnerClient:
    """Calls the runner.

    Args:
        proxy: the BentoML proxy of the runner, from `bentoml.depends`.
        is_draining: returns whether this process, and with it the runner, is shutting down.
    """

    def __init__(self, proxy: Any, is_draining: Callable[[], bool]) -> None:
        self._api = proxy.to_async
        self._is_draining = is_draining

    async def admit(self, http_request_id: str, model: str, params: GenerationParams) -> str:
        """Ask the runner to admit a request. If the caller is cancelled, the request is aborted.

        Args:
            http_request_id: 8 hex digits; the request id begins with them.
            model: the name that the client sent.
            params: what to generate.

        Returns:
            The request id.

        Raises:
            MusicGenError: the runner refuses the request or is unavailable.
        """
        # Drawn here, so that the request can be aborted even if the runner's response is lost.
        request_id = f"{http_request_id}-{uuid.uuid4().hex}"
        message = AdmitMsg(request_id=request_id, model=model, params=params)
        async with self._abort_on_error(request_id):
            responses = await self._call(lambda: self._api.admit([message]))
        if "error" in responses[0]:
            raise MusicGenError.from_dict(responses[0])
        return request_id

    async def generate(self, request_id: str, on_event: EventCallback) -> AssembledAudio:
        """Wait for the complete audio of an admitted request. If the caller is cancelled, the request is aborted.

        Args:
            request_id: the result of `admit`.
            on_event: called with every event.

        Raises:
            MusicGenError: the request failed or the runner is unavailable.
        """
        assembler = AudioAssembler()

        def assemble(event: Event) -> None:
            on_event(event)
            assembler.on_event(event)

        await self.stream_events(request_id, assemble)
        if assembler.started is None or assembler.samples is None:
            raise self._unavailable()
        return AssembledAudio(assembler.started, assembler.samples)

    async def stream_events(self, request_id: str, on_event: EventCallback) -> None:
        """Pass on the events of an admitted request until it finishes. A cancelled caller aborts the request.

        Args:
            request_id: the result of `admit`.
            on_event: called with every event.

        Raises:
            MusicGenError: the request failed or the runner is unavailable.
        """
        async with self._abort_on_error(request_id):
            await self._stream_events(request_id, on_event)

    async def models(self) -> list[dict[str, Any]]:
        """Return the status of every model, with the fields of ModelStatus."""
        return list(await self._call(lambda: self._api.models()))

    async def readiness(self) -> dict[str, Any]:
        """Return `{"ready": bool}`, or `{"error": ...}` if a preloaded model cannot be loaded."""
        return dict(await self._call(lambda: self._api.readiness()))

    @asynccontextmanager
    async def _abort_on_error(self, request_id: str) -> AsyncIterator[None]:
        """Abort the request if the block raises or is cancelled."""
        try:
            yield
        except BaseException:
            await asyncio.shield(self._abort(request_id))
            raise

    async def _abort(self, request_id: str) -> None:
        with suppress(MusicGenError):  # an unavailable runner has no slots to free
            await self._call(lambda: self._api.abort(request_id), ABORT_TIMEOUT_SECONDS)

    async def _call(
        self, make_call: Callable[[], Awaitable[Result]], timeout_seconds: float = CALL_TIMEOUT_SECONDS
    ) -> Result:
        """Await a short call. The timeout is needed because a runner that hangs or has died keeps its socket open."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await make_call()
        except (*CONNECTION_ERRORS, TimeoutError, BentoMLException):
            raise self._unavailable() from None

    async def _stream_events(self, request_id: str, on_event: EventCallback) -> None:
        try:
            async with aclosing(self._events(request_id)) as events:
                async for event in events:
                    on_event(event)
                    match event:
                        case Failed(error):
                            raise error
                        case Finished():
                            return
        except (*CONNECTION_ERRORS, TimeoutError, BentoMLException):
            raise self._unavailable() from None
        except ValueError:
            raise GenerationFailed("The runner sent an invalid event.", hint="Retry the request.") from None
        raise self._unavailable()  # the stream ended without a last event

    async def _events(self, request_id: str) -> Any:
        decoder = FrameDecoder()
        async with aclosing(self._api.stream(request_id)) as parts:
            async for part in parts:
                for event in decoder.feed(part):
                    yield event

    def _unavailable(self) -> MusicGenError:
        if self._is_draining():
            return ShuttingDown()
        return Unavailable(
            "The inference process is unavailable.", hint="It is restarting; retry in 10 s.", retry_after=10
        )


def remove_session_limits(proxy: Any) -> None:
    """Give a BentoML proxy an HTTP session without limits. Call it on the running loop, before the first call.

    BentoML's own session is unsuitable for three reasons. It holds at most 100 connections: with 100 running requests,
    an abort would wait until one of them ends. It ends a call after `traffic.timeout`, streaming or not. It reuses
    connections, which the runner closes after 5 s without a call, sometimes at the moment of reuse. A new connection
    over a unix socket has no measurable cost.
    """
    from bentoml._internal.utils.uri import uri_to_path

    api: Any = getattr(proxy, "to_async", None)
    manager: Any = getattr(api, "_session_manager", None)
    if manager is None or not api.url.startswith("file:"):
        return  # the runner is in this process, or is not reached over BentoML's socket
    manager._session = aiohttp.ClientSession(
        base_url="http://runner",
        headers=manager._headers,
        timeout=aiohttp.ClientTimeout(total=None),
        connector=aiohttp.UnixConnector(path=uri_to_path(api.url), limit=0, force_close=True),
    )
    manager._created_at = time.monotonic()
