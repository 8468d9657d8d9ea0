"""The routes of the jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from musicgen_bento.errors import MusicGenError
from musicgen_bento.schemas import GenerationRequest, JobAudioQuery, JobQuery
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.jobs import Job, Jobs
from musicgen_bento.server.middleware import JOB_PATH, NAMED
from musicgen_bento.server.request_context import exchange, refuse, until_gone
from musicgen_bento.server.responses import Streamed, send_whole
from musicgen_bento.server.shutdown import cancel
from musicgen_bento.validation import invalid_request

NOT_STORED = {"Cache-Control": "no-store"}

Question = TypeVar("Question", JobQuery, JobAudioQuery)
Handler = Callable[[Request], Awaitable[Response]]


def routes(jobs: Callable[[], Jobs], asks: type[GenerationRequest]) -> list[Route]:
    """`POST /jobs`, and what there is below it.

    Args:
        jobs: the process's own.
        asks: what a request is.
    """

    async def submit(request: Request) -> Response:
        asked = asks.model_validate_json(await request.body())  # the middleware has checked it
        job = await jobs().submit(asked, exchange())
        return _answer(job, 202, {"Location": f"/jobs/{job.id}"})

    async def follow(request: Request) -> Response:
        if request.method == "DELETE":
            jobs().drop(_id(request))
            return Response(status_code=204)
        question = _question(request, JobQuery)
        job = jobs().find(_id(request))
        await _while_connected(request, job.wait(question.wait, question.version))
        return _answer(job)

    async def audio(request: Request) -> Response:
        question = _question(request, JobAudioQuery)
        job = jobs().find(_id(request))
        with jobs().reading(job) as music:
            headers = {**music.headers, **NOT_STORED, "Content-Length": str(len(music.wav))}
        if request.method == "HEAD":
            return Response(media_type="audio/wav", headers=headers)
        return Audio(jobs(), job, headers, keep=question.keep)

    async def stream(request: Request) -> Response:
        job = jobs().find(_id(request))
        with jobs().listening(job) as recording:
            return Listening(jobs(), job, recording)

    return [
        Route("/jobs", _refusing(submit), methods=["POST"]),
        Route(JOB_PATH, _refusing(follow), methods=["GET", "DELETE"]),
        Route(f"{JOB_PATH}/audio", _refusing(audio), methods=["GET"]),
        Route(f"{JOB_PATH}/stream", _refusing(stream), methods=["GET"]),
    ]


class Audio(Response):
    """The WAV of a job, which is forgotten when the last byte of it has been sent, unless it is to be kept."""

    media_type = "audio/wav"

    def __init__(self, jobs: Jobs, job: Job, headers: dict[str, str], *, keep: bool) -> None:
        super().__init__(headers=headers)
        self._jobs = jobs
        self._job = job
        self._keep = keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A connection that breaks meanwhile leaves the job as it was."""
        with self._jobs.reading(self._job) as music:
            if await send_whole(music.wav, self.raw_headers, receive, send) and not self._keep:
                self._jobs.forget(self._job)


class Listening(Streamed):
    """The sound of a job while it is made. Whoever listens takes nothing away, and may come late: all of it is sent."""

    def __init__(self, jobs: Jobs, job: Job, recording: PcmBuffer) -> None:
        super().__init__(recording, job.order.seed, "wav")
        self._jobs = jobs
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, unless the reader leaves, which the job does not mind."""
        with self._jobs.listening(self._job):
            await super().__call__(scope, receive, send)


def _answer(job: Job, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(job.view().model_dump(), status, headers={**NOT_STORED, **(headers or {})})


def _refusing(handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except MusicGenError as error:
            return refuse(error)

    return handle


def _id(request: Request) -> str:
    named: dict[str, str] = request.scope.get(NAMED, {})
    return named.get("id", "")


def _question(request: Request, kind: type[Question]) -> Question:
    try:
        return kind.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise invalid_request(error, kind) from None


async def _while_connected(request: Request, news: Coroutine[Any, Any, None]) -> None:
    waiting, gone = asyncio.ensure_future(news), asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel(waiting, gone)
