"""The routes of the jobs: submit, poll, cancel, download and stream."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from musicgen_bento.errors import MusicGenError
from musicgen_bento.schemas import GenerationRequest, JobAudioQuery, JobQuery
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.error_responses import ErrorResponse
from musicgen_bento.server.job import Job
from musicgen_bento.server.jobs import Jobs
from musicgen_bento.server.middleware import JOB_PATH, PATH_PARAMS
from musicgen_bento.server.request_body import wait_for_disconnect
from musicgen_bento.server.request_context import current_request
from musicgen_bento.server.responses import StreamingAudioResponse, send_wav
from musicgen_bento.server.tasks import Stopped, run_until
from musicgen_bento.validation import invalid_request

NO_STORE = {"Cache-Control": "no-store"}

Query = TypeVar("Query", JobQuery, JobAudioQuery)
Handler = Callable[[Request], Awaitable[Response]]


def job_routes(get_jobs: Callable[[], Jobs], request_type: type[GenerationRequest]) -> list[Route]:
    """Return the routes of `/jobs` and below.

    Args:
        get_jobs: returns the jobs of the process. They do not exist before the service has started.
        request_type: the model of the body of `POST /jobs`.
    """

    async def submit(request: Request) -> Response:
        body = request_type.model_validate_json(await request.body())  # the middleware has checked it
        job = await get_jobs().submit(body, current_request())
        return _job_response(job, 202, {"Location": f"/jobs/{job.id}"})

    async def poll(request: Request) -> Response:
        query = _parse_query(request, JobQuery)
        job = get_jobs().get(_job_id(request))
        with suppress(Stopped):
            await run_until(job.wait(query.wait, query.version), wait_for_disconnect(request.receive))
        return _job_response(job)

    async def delete(request: Request) -> Response:
        get_jobs().cancel_or_delete(_job_id(request))
        return Response(status_code=204)

    async def poll_or_delete(request: Request) -> Response:  # one route, so that a 405 response names both methods
        return await (delete(request) if request.method == "DELETE" else poll(request))

    async def download(request: Request) -> Response:
        query = _parse_query(request, JobAudioQuery)
        job = get_jobs().get(_job_id(request))
        with get_jobs().hold_audio(job) as encoded:
            headers = {**encoded.headers, **NO_STORE, "Content-Length": str(len(encoded.wav))}
        if request.method == "HEAD":
            return Response(media_type="audio/wav", headers=headers)
        return JobAudioResponse(get_jobs(), job, headers, keep=query.keep)

    async def stream(request: Request) -> Response:
        job = get_jobs().get(_job_id(request))
        with get_jobs().hold_stream(job) as buffer:
            return JobStreamResponse(get_jobs(), job, buffer)

    return [
        Route("/jobs", _with_error_responses(submit), methods=["POST"]),
        Route(JOB_PATH, _with_error_responses(poll_or_delete), methods=["GET", "DELETE"]),
        Route(f"{JOB_PATH}/audio", _with_error_responses(download), methods=["GET"]),
        Route(f"{JOB_PATH}/stream", _with_error_responses(stream), methods=["GET"]),
    ]


class JobAudioResponse(Response):
    """Sends the WAV of a job, then removes the job unless it is to be kept."""

    media_type = "audio/wav"

    def __init__(self, jobs: Jobs, job: Job, headers: dict[str, str], *, keep: bool) -> None:
        super().__init__(headers=headers)
        self._jobs = jobs
        self._job = job
        self._keep = keep

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the WAV. If the client disconnects before its end, the job is kept."""
        with self._jobs.hold_audio(self._job) as encoded:
            if await send_wav(encoded.wav, self.raw_headers, receive, send) and not self._keep:
                self._jobs.remove(self._job)


class JobStreamResponse(StreamingAudioResponse):
    """Sends the audio of a running job from its first sample. Any number of clients may stream a job."""

    def __init__(self, jobs: Jobs, job: Job, buffer: PcmBuffer) -> None:
        super().__init__(buffer, job.admitted.seed, "wav")
        self._jobs = jobs
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the audio. A client that disconnects does not affect the job."""
        with self._jobs.hold_stream(self._job):
            await super().__call__(scope, receive, send)


def _job_response(job: Job, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(job.view().model_dump(), status, headers={**NO_STORE, **(headers or {})})


def _with_error_responses(handler: Handler) -> Handler:
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except MusicGenError as error:
            return ErrorResponse(error)

    return handle


def _job_id(request: Request) -> str:
    params: dict[str, str] = request.scope.get(PATH_PARAMS, {})
    return params.get("id", "")


def _parse_query(request: Request, query_type: type[Query]) -> Query:
    try:
        return query_type.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise invalid_request(error, query_type) from None
