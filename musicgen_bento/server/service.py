"""BentoML wiring: MusicGenService, the front, and MusicGenRunner, which has the device. Nothing else is in here."""

# BentoML carries no types for its decorators.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated, Any

import bentoml
import starlette.middleware
from _bentoml_sdk import Service  # type: ignore[import-untyped]
from bentoml.validators import ContentType
from pydantic import Field

from musicgen_bento import schemas
from musicgen_bento.config import Settings
from musicgen_bento.errors import MusicGenError
from musicgen_bento.runner import metrics
from musicgen_bento.runner.client import RunnerClient, remove_session_limits
from musicgen_bento.runner.request_table import AdmitMsg, RequestTable
from musicgen_bento.server import openapi, routes
from musicgen_bento.server.generation import Front
from musicgen_bento.server.jobs import Jobs
from musicgen_bento.server.middleware import Middleware, PathNormalizer
from musicgen_bento.server.request_context import exchange, refuse
from musicgen_bento.server.shutdown import Drain, InFlight
from musicgen_bento.server.studio import Generator
from musicgen_bento.server.unread import ResponseBufferLimit

# No word of what is done here goes to anyone, however the service is started.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler

SETTINGS = Settings()
RUNNER_OUTLIVES = 10.0  # seconds: the front needs the runner until it has told its last client
FOREVER = 1e9

WORK = InFlight()
DRAIN = Drain(SETTINGS.drain_seconds, WORK.__bool__)


class Plain(Service[Any]):  # type: ignore[misc]
    """A service without BentoML's time limit, which has no off and keeps a timer per request until it is over."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """The application, before its first request."""
        application: Any = super().to_asgi(is_main=is_main)
        kept = [entry for entry in application.user_middleware if entry.cls.__name__ != "TimeoutMiddleware"]
        application.user_middleware = [
            starlette.middleware.Middleware(PathNormalizer, paths=_paths(application)),
            *kept,
        ]
        return application

    @property
    def openapi_spec(self) -> Any:
        """What /docs.json serves."""
        return openapi.correct(super().openapi_spec.asdict()) if "generate" in self.apis else super().openapi_spec


def _paths(application: Any) -> frozenset[str]:
    """The paths of an application and of what is mounted at its root."""
    mounted = [inner for route in application.routes if route.path == "" for inner in route.routes]
    return frozenset(route.path for route in (*application.routes, *mounted) if hasattr(route, "endpoint"))


DURATION: float = Field(
    min(30.0, SETTINGS.max_duration),
    ge=0.1,
    le=SETTINGS.max_duration,
    allow_inf_nan=False,
    description="Length in seconds, cut to whole frames (20 ms).",
    examples=[10],
)


class GenerationRequest(schemas.GenerationRequest):
    """One clip to make from text."""

    duration: float = DURATION


class StreamRequest(schemas.StreamRequest):
    """One clip to make from text, and to send while it is made."""

    duration: float = DURATION


@bentoml.service(
    service_class=Plain,
    resources={"gpu": 1},
    workers=1,
    traffic={"timeout": FOREVER},
    # BentoML closes the connections, with the calls on them, after 100 requests or 300 s.
    runner_connection={"max_requests": 10**9, "max_age": FOREVER},
    logging={"access": {"enabled": False}},
)
class MusicGenRunner:
    """Makes the music. One process per device, reached by the front alone, over a unix socket."""

    def __init__(self) -> None:
        from musicgen_bento.device import describe
        from musicgen_bento.model_pool.pool import ModelPool  # brings torch, which the front does without

        self._pool = ModelPool(
            SETTINGS,
            allow_any_model=SETTINGS.allow_any_model,
            loaded=metrics.count_load,
            evicted=metrics.count_eviction,
        )
        _log.info(describe(self._pool.device, SETTINGS))
        self._desk = RequestTable(metrics.MeasuredPool(self._pool, self._pool.request_counts))
        self._drain = Drain(SETTINGS.drain_seconds + RUNNER_OUTLIVES, lambda: len(self._desk) > 0, idle_seconds=1.0)

    @bentoml.on_startup
    async def take_signals(self) -> None:
        """Finish what runs before the server is told to stop."""
        self._drain.install()

    @bentoml.on_shutdown
    def stop(self) -> None:
        """Stop the threads; what runs is finished by now, or out of time."""
        self._pool.close()

    @bentoml.api(batchable=True, max_batch_size=256, max_latency_ms=3_600_000)
    async def admit(self, admissions: list[AdmitMsg]) -> list[dict[str, Any]]:
        """A ticket or an error for each, as Desk.admit says. Short and uniform, so BentoML batches it."""
        return [self._desk.admit(admission) for admission in admissions]

    @bentoml.api
    async def stream(self, ticket: str) -> AsyncGenerator[bytes, None]:
        """The clip's events, as wire.py writes them."""
        async for frame in self._desk.stream(ticket):
            yield frame

    @bentoml.api
    async def cancel(self, ticket: str) -> bool:
        """Forget a clip; its slot is free within a step."""
        self._desk.abort(ticket)
        return True

    @bentoml.api
    async def models(self) -> list[dict[str, Any]]:
        """Every model, as ModelStatus has it."""
        statuses = await asyncio.to_thread(self._pool.statuses)  # looks at the disk
        return [asdict(status) for status in statuses]

    @bentoml.api
    async def readiness(self) -> dict[str, Any]:
        """`{"ready": bool}`, or the error that kept a preloaded model out."""
        try:
            return {"ready": self._pool.ready()}
        except MusicGenError as error:
            return error.to_dict()


async def _models() -> schemas.ModelList:
    service: Any = bentoml.get_current_service()
    return await service.front.models()  # type: ignore[no-any-return]


def _jobs() -> Jobs:
    service: Any = bentoml.get_current_service()
    return service.jobs  # type: ignore[no-any-return]


@bentoml.service(
    service_class=Plain,
    workers=1,  # a job lives in the process that took it
    traffic={"timeout": FOREVER},
    http={"host": "127.0.0.1", "port": 8000},
    # It would ask the runner without a limit of time; __is_ready__ has one.
    runner_probe={"enabled": False, "timeout": 1, "period": 10},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(routes.build(_models, _jobs, GenerationRequest), path="/")
class MusicGenService:
    """Text to music with MusicGen. GET / is a page for people, GET /models lists the models."""

    runner = bentoml.depends(MusicGenRunner)

    def __init__(self) -> None:
        remote = RunnerClient(self.runner, lambda: DRAIN.started)
        studio = Generator(remote, SETTINGS)
        self.front = Front(remote, studio, DRAIN, ResponseBufferLimit(SETTINGS.response_buffer_megabytes * 1_000_000))
        self.jobs = Jobs(studio, SETTINGS, DRAIN, WORK)

    @bentoml.on_startup
    async def take_signals(self) -> None:
        """Finish what runs before the server is told to stop; call the runner without limits."""
        DRAIN.install()
        remove_session_limits(self.runner)

    async def __is_ready__(self) -> bool:
        exchange().error = await self.front.unready()
        return exchange().error is None

    @bentoml.api
    async def generate(self, request: GenerationRequest, /) -> Annotated[bytes, ContentType("audio/wav")]:
        """Make a clip and answer with the whole WAV: 16-bit PCM at the model's rate and channels.

        The headers X-Seed, X-Model, X-Audio-Sample-Rate, X-Audio-Channels and X-Audio-Duration say what it is.
        Every error is `{"error": {"code", "message", "hint", "field"}}`; 429 and 503 come with Retry-After.
        A client that leaves cancels its clip.
        """
        # BentoML sends a Response as it is; the annotation is what the API document says of it.
        return await self.front.generate(request)  # type: ignore[return-value]

    @bentoml.api
    async def stream(self, request: StreamRequest, /) -> Annotated[bytes, ContentType("audio/wav")]:
        """Make a clip and send it while it is made: a WAV with the headers of /generate, or its samples alone.

        Its length is known and told before its first sample: Content-Length and the header of the WAV are exact, so an
        answer that breaks off is shorter than it says. What is refused, or fails before the first sample, is the usual
        error. A client that leaves cancels its clip.
        """
        return await self.front.stream(request)  # type: ignore[return-value]

    @bentoml.api
    async def list_models(self) -> schemas.ModelList:
        """The models: id, other spellings, channels, sample rate, licence, and whether each is loaded. Send {}."""
        try:
            return await self.front.models()
        except MusicGenError as error:
            return refuse(error)  # type: ignore[return-value]


MusicGenService.add_asgi_middleware(  # type: ignore[attr-defined]
    Middleware,
    bodies={
        "/generate": GenerationRequest,
        "/stream": StreamRequest,
        "/jobs": GenerationRequest,
        "/list_models": None,
    },
    drain=DRAIN,
    work=WORK,
)
