"""One clip that a server generates: the client submits a job, polls it, downloads the audio and deletes the job.

No request waits longer than some seconds for its response, so no proxy closes the connection. The seed is drawn in the
client, so a clip that is lost with a restarted server is generated again with the same bytes.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

from musicgen_bento.client.deadline import Deadline
from musicgen_bento.client.errors import cancelled, invalid_response, is_retryable
from musicgen_bento.client.stream import AudioMetadata, Stream
from musicgen_bento.client.transport import (
    READ_TIMEOUT_SECONDS,
    Server,
    ServerResponse,
    StreamedResponse,
    Transport,
)
from musicgen_bento.clip import Clip, Progress, ProgressCallback, ignore_progress
from musicgen_bento.errors import GenerationFailed, MusicGenError, NotReady, UnknownJob
from musicgen_bento.schemas import MAX_SEED, GenerationRequest, Job

POLL_SECONDS = 20.0  # the server holds a poll for so long while nothing changes
CANCEL_TIMEOUT_SECONDS = 5.0
STREAM_READ_TIMEOUT_SECONDS = 300.0  # a large model on a CPU takes minutes between two chunks

Result = TypeVar("Result")


class Generation:
    """A clip to generate: `result` or `stream` runs it, and `cancel` ends it from any thread.

    Args:
        server: the server that generates the clip.
        request: the clip to generate.
        timeout: seconds from the call of `result` or `stream` on; None means no limit.
    """

    def __init__(self, server: Server, request: GenerationRequest, timeout: float | None = None) -> None:
        fields = request.model_dump(exclude_unset=True, exclude_none=True)  # the server has the other defaults
        self._body: Mapping[str, Any] = {"seed": secrets.randbelow(MAX_SEED + 1), **fields}
        self._server = server
        self._timeout = timeout
        self._cancel_event = threading.Event()
        self._job_id: str | None = None

    def result(self, progress: ProgressCallback | None = None) -> Clip:
        """Generate the clip and return it. The job is deleted from the server, also after an error.

        Args:
            progress: receives each change, in this thread. An exception that it raises cancels the clip.

        Raises:
            MusicGenError: the generation failed, or was cancelled.
        """
        report = progress or ignore_progress
        with Transport(self._server, Deadline(self._timeout), self._cancel_event) as transport:
            return self._with_new_jobs(transport, lambda: self._run_job(transport, report))

    def stream(self, progress: ProgressCallback | None = None, *, skip_header: bool = False) -> Stream:
        """Wait until the first audio is available and return the stream. Close a stream that is not read to its end.

        Args:
            progress: receives each change until the stream begins, in this thread.
            skip_header: leave out the WAV header.

        Raises:
            MusicGenError: the generation failed before the first audio, or was cancelled.
        """
        report = progress or ignore_progress
        transport = Transport(self._server, Deadline(self._timeout), self._cancel_event)
        try:
            response = self._with_new_jobs(transport, lambda: self._open_stream(transport, report))
            return Stream(response, skip_header, self._cancel_event, lambda: self._close(transport))
        except BaseException:
            self._close(transport)
            raise

    def cancel(self) -> None:
        """Cancel the generation here and on the server. Does nothing after the generation has ended."""
        self._cancel_event.set()
        self._delete_job()

    def _with_new_jobs(self, transport: Transport, attempt: Callable[[], Result | MusicGenError]) -> Result:
        """Return the result of an attempt. An attempt that returns a temporary error is repeated with a new job.

        Raises:
            MusicGenError: an attempt raised it, or returned it permanently or too often.
        """
        retries = 0
        while isinstance(outcome := attempt(), MusicGenError):
            is_temporary = isinstance(outcome, UnknownJob) or is_retryable(outcome)
            if not is_temporary or retries == self._server.retries:
                raise outcome
            transport.pause(outcome, retries)
            retries += 1
        return outcome

    def _run_job(self, transport: Transport, report: ProgressCallback) -> Clip | MusicGenError:
        """Run one job. Return its clip or its error; errors of calls, which were retried already, are raised."""
        try:
            job = self._submit_and_poll(transport, report, ("queued", "loading", "running"))
            if job.state != "done":
                return _job_error(job)
            # keep=true: the server cannot see that a connection lost some of the audio; `finally` deletes the job.
            return _clip_from_response(transport.request("GET", f"{_job_path(job.id)}/audio", params={"keep": "true"}))
        except UnknownJob as error:  # the server was restarted and has lost the job
            self._job_id = None
            return error
        finally:
            self._delete_job()

    def _open_stream(self, transport: Transport, report: ProgressCallback) -> StreamedResponse | MusicGenError:
        """Start one job. Return its audio stream, or the job's error if it ends without audio."""
        try:
            job = self._submit_and_poll(transport, report, ("queued", "loading"))
            path = _job_path(job.id)
            if job.state in ("failed", "cancelled"):
                self._delete_job()
                return _job_error(job)
            if job.state == "running":
                with suppress(NotReady):  # the job has ended since the poll
                    return transport.stream(f"{path}/stream", read_timeout=STREAM_READ_TIMEOUT_SECONDS)
            with suppress(NotReady):  # the job has failed since the poll
                return transport.stream(f"{path}/audio?keep=true", read_timeout=READ_TIMEOUT_SECONDS)
            job = transport.request("GET", path).parse(Job)
            self._delete_job()
            return _job_error(job)
        except UnknownJob as error:  # the server was restarted and has lost the job
            self._job_id = None
            return error

    def _submit_and_poll(self, transport: Transport, report: ProgressCallback, states: tuple[str, ...]) -> Job:
        """Submit a job, poll it while it is in one of the states, and return it afterwards."""
        job = transport.request("POST", "/jobs", json=self._body).parse(Job)
        self._job_id = job.id
        _report_job(report, job)
        while job.state in states:
            job = transport.request(
                "GET",
                _job_path(job.id),
                params={"wait": POLL_SECONDS, "version": job.version},
                read_timeout=POLL_SECONDS + READ_TIMEOUT_SECONDS,
            ).parse(Job)
            _report_job(report, job)
        if self._cancel_event.is_set():
            raise cancelled()
        return job

    def _close(self, transport: Transport) -> None:
        transport.close()
        self._delete_job()

    def _delete_job(self) -> None:
        """Delete the job from the server, if there is one. If the server cannot be reached, the job expires there."""
        job_id, self._job_id = self._job_id, None
        if job_id is None:
            return
        server = replace(self._server, retries=0)
        with suppress(MusicGenError), Transport(server, Deadline(CANCEL_TIMEOUT_SECONDS)) as transport:
            transport.request("DELETE", _job_path(job_id))


def _job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


def _report_job(report: ProgressCallback, job: Job) -> None:
    report(Progress(job.state, job.position, job.audio_seconds, job.duration))


def _job_error(job: Job) -> MusicGenError:
    if job.error is None:
        return GenerationFailed("The job was cancelled on the server.", hint="Another client may have deleted it.")
    return MusicGenError.from_dict({"error": job.error.model_dump()})


def _clip_from_response(response: ServerResponse) -> Clip:
    """Return the clip that a response holds.

    Raises:
        InvalidResponse: the body is not a WAV file, or its headers are incomplete.
    """
    wav = response.body
    if wav[:4] != b"RIFF" or wav[8:12] != b"WAVE":
        raise invalid_response()
    metadata = AudioMetadata.from_headers(response.headers)
    return Clip(
        wav,
        seed=metadata.seed,
        model=metadata.model,
        sample_rate=metadata.sample_rate,
        channels=metadata.channels,
        duration=metadata.duration,
    )
