"""The two BentoML services: MusicGenService, the HTTP process, and MusicGenRunner, which holds the models."""

# BentoML has no types for its decorators.
# mypy: disallow-untyped-decorators=False

from __future__ import annotations

import asyncio
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
from musicgen_bento.log import logger
from musicgen_bento.runner import metrics
from musicgen_bento.runner.client import RunnerClient, remove_session_limits
from musicgen_bento.runner.protocol import AdmitMsg
from musicgen_bento.runner.request_table import RequestTable
from musicgen_bento.server import routes
from musicgen_bento.server.error_responses import ErrorResponse
from musicgen_bento.server.generation import Generator
from musicgen_bento.server.jobs import Jobs
from musicgen_bento.server.middleware import Middleware, PathNormalizer
from musicgen_bento.server.openapi import patch_openapi
from musicgen_bento.server.response_buffer import ResponseBufferLimit
from musicgen_bento.server.shutdown import Drain, InFlight

# No usage statistics are sent, however the service is started.
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

SETTINGS = Settings()
RUNNER_EXTRA_DRAIN_SECONDS = 10.0  # the HTTP process needs the runner until its last response is sent
NO_TIMEOUT = 1e9  # seconds; BentoML cannot switch its time limits off

IN_FLIGHT = InFlight()
DRAIN = Drain(SETTINGS.drain_seconds, IN_FLIGHT.__bool__)


class ServiceWithoutTimeout(Service[Any]):  # type: ignore[misc]
    """A BentoML service without TimeoutMiddleware, which keeps a timer per request until its end."""

    def to_asgi(self, is_main: bool = True) -> Any:
        """Return the application, before its first request."""
        application: Any = super().to_asgi(is_main=is_main)
        middleware = [entry for entry in application.user_middleware if entry.cls.__name__ != "TimeoutMiddleware"]
        path_normalizer = starlette.middleware.Middleware(PathNormalizer, paths=_paths(application))
        application.user_middleware = [path_normalizer, *middleware]
        return application

    @property
    def openapi_spec(self) -> Any:
        """The document that /docs.json serves."""
        return patch_openapi(super().openapi_spec.asdict()) if "generate" in self.apis else super().openapi_spec


def _paths(application: Any) -> frozenset[str]:
    """Return the paths of an application and of the applications mounted at its root."""
    mounted = [inner for route in application.routes if route.path == "" for inner in route.routes]
    return frozenset(route.path for route in (*application.routes, *mounted) if hasattr(route, "endpoint"))


DURATION: float = Field(
    min(30.0, SETTINGS.max_duration),
    ge=0.1,
    le=SETTINGS.max_duration,
    allow_inf_nan=False,
    description="Length in seconds, rounded down to whole frames of 20 ms.",
    examples=[10],
)


class GenerationRequest(schemas.GenerationRequest):
    """One clip to generate from text, with the server's maximum duration."""

    duration: float = DURATION


class StreamRequest(schemas.StreamRequest):
    """One clip to generate from text and to stream, with the server's maximum duration."""

    duration: float = DURATION


@bentoml.service(
    service_class=ServiceWithoutTimeout,
    resources={"gpu": 1},
    workers=1,
    traffic={"timeout": NO_TIMEOUT},
    # By default BentoML closes a connection, with the calls on it, after 100 requests or 300 s.
    runner_connection={"max_requests": 10**9, "max_age": NO_TIMEOUT},
    logging={"access": {"enabled": False}},
)
class MusicGenRunner:
    """Holds the models and generates audio. One process per device; only the HTTP process calls it."""

    def __init__(self) -> None:
        from musicgen_bento.device import describe
        from musicgen_bento.model_pool.pool import ModelPool  # imports torch, which the HTTP process does not need

        self._pool = ModelPool(
            SETTINGS,
            allow_any_model=SETTINGS.allow_any_model,
            on_loaded=metrics.count_load,
            on_evicted=metrics.count_eviction,
        )
        logger.info(describe(self._pool.device, SETTINGS))
        self._requests = RequestTable(self._pool, metrics.RequestMetrics(self._pool.request_counts))
        self._drain = Drain(
            SETTINGS.drain_seconds + RUNNER_EXTRA_DRAIN_SECONDS, lambda: len(self._requests) > 0, idle_seconds=1.0
        )

    @bentoml.on_startup
    async def take_signals(self) -> None:
        """Take over SIGTERM and SIGINT, so that accepted requests finish before the server stops."""
        self._drain.install()

    @bentoml.on_shutdown
    def stop(self) -> None:
        """Stop the threads. Running requests have finished, or their time after the shutdown signal has expired."""
        self._pool.close()

    @bentoml.api(batchable=True, max_batch_size=256, max_latency_ms=3_600_000)
    async def admit(self, messages: list[AdmitMsg]) -> list[dict[str, Any]]:
        """Admit requests; see `RequestTable.admit`. BentoML combines concurrent calls into one batch."""
        return [self._requests.admit(message) for message in messages]

    @bentoml.api
    async def stream(self, request_id: str) -> AsyncGenerator[bytes, None]:
        """Stream the events of a request as frames; see runner/protocol.py."""
        async for frame in self._requests.stream(request_id):
            yield frame

    @bentoml.api
    async def abort(self, request_id: str) -> bool:
        """Abort a request; its slot is free within a step."""
        self._requests.abort(request_id)
        return True

    @bentoml.api
    async def models(self) -> list[dict[str, Any]]:
        """Return the status of every model, with the fields of ModelStatus."""
        statuses = await asyncio.to_thread(self._pool.statuses)  # reads the disk
        return [asdict(status) for status in statuses]

    @bentoml.api
    async def readiness(self) -> dict[str, Any]:
        """Return `{"ready": bool}`, or `{"error": ...}` if a preloaded model cannot be loaded."""
        try:
            return {"ready": self._pool.ready()}
        except MusicGenError as error:
            return error.to_dict()


async def _list_models() -> schemas.ModelList:
    service: Any = bentoml.get_current_service()
    return await service.generator.list_models()  # type: ignore[no-any-return]


def _get_jobs() -> Jobs:
    service: Any = bentoml.get_current_service()
    return service.jobs  # type: ignore[no-any-return]


@bentoml.service(
    service_class=ServiceWithoutTimeout,
    workers=1,  # a job exists only in the process that admitted it
    traffic={"timeout": NO_TIMEOUT},
    http={"host": "127.0.0.1", "port": 8000},
    # BentoML's own probe of the runner has no time limit; __is_ready__ has one.
    runner_probe={"enabled": False, "timeout": 1, "period": 10},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(routes.build_app(_list_models, _get_jobs, GenerationRequest), path="/")
class MusicGenService:
    """Text to music with MusicGen. GET / is a page for people, GET /models lists the models."""

    runner = bentoml.depends(MusicGenRunner)

    def __init__(self) -> None:
        runner = RunnerClient(self.runner, lambda: DRAIN.started)
        response_buffer = ResponseBufferLimit(SETTINGS.response_buffer_megabytes * 1_000_000)
        self.generator = Generator(runner, SETTINGS, DRAIN, response_buffer)
        self.jobs = Jobs(self.generator, SETTINGS, DRAIN, IN_FLIGHT)

    @bentoml.on_startup
    async def take_signals(self) -> None:
        """Take over SIGTERM and SIGINT, and remove the limits of the connection to the runner."""
        DRAIN.install()
        remove_session_limits(self.runner)

    async def __is_ready__(self) -> bool:
        """Return True if the service is ready. BentoML calls it for /readyz.

        Raises:
            MusicGenError: the service is not ready. `Middleware` responds with this error.
        """
        if error := await self.generator.readiness_error():
            raise error
        return True

    # A handler may return a Response, which BentoML sends as it is. The annotations are for the API document.

    @bentoml.api
    async def generate(self, request: GenerationRequest, /) -> Annotated[bytes, ContentType("audio/wav")]:
        """Generate a clip and return the whole WAV: 16-bit PCM at the model's sample rate and channels.

        The headers X-Seed, X-Model, X-Audio-Sample-Rate, X-Audio-Channels and X-Audio-Duration describe the clip.
        Every error is `{"error": {"code", "message", "hint", "field"}}`; 429 and 503 have a Retry-After header.
        If the client disconnects, the request is aborted.
        """
        return await self.generator.generate(request)  # type: ignore[return-value]

    @bentoml.api
    async def stream(self, request: StreamRequest, /) -> Annotated[bytes, ContentType("audio/wav")]:
        """Generate a clip and send it while it is generated: a WAV with the headers of /generate, or its samples alone.

        Content-Length and the WAV header are exact and are sent before the first sample, so a truncated stream can be
        detected. Errors before the first sample are normal error responses; later ones close the connection early. If
        the client disconnects, the request is aborted.
        """
        return await self.generator.stream(request)  # type: ignore[return-value]

    @bentoml.api
    async def list_models(self) -> schemas.ModelList:
        """List the models: id, aliases, channels, sample rate, licence and state. Send {}."""
        try:
            return await self.generator.list_models()
        except MusicGenError as error:
            return ErrorResponse(error)  # type: ignore[return-value]


MusicGenService.add_asgi_middleware(  # type: ignore[attr-defined]
    Middleware,
    bodies={
        "/generate": GenerationRequest,
        "/stream": StreamRequest,
        "/jobs": GenerationRequest,
        "/list_models": None,
    },
    drain=DRAIN,
    in_flight=IN_FLIGHT,
)
