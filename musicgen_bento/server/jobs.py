"""All jobs of the HTTP process, in its memory, within a limit. job.py describes the states of a job."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from musicgen_bento import model_catalog, schemas
from musicgen_bento.config import Settings
from musicgen_bento.engine.types import EventCallback
from musicgen_bento.errors import InvalidRequest, JobStorageFull, MusicGenError, NotReady, UnknownJob
from musicgen_bento.log import logger
from musicgen_bento.runner.metrics import count_error
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.generation import AdmittedRequest
from musicgen_bento.server.job import Job, now
from musicgen_bento.server.request_context import RequestContext
from musicgen_bento.server.responses import EncodedAudio
from musicgen_bento.server.shutdown import Drain, InFlight

ABANDONED_SECONDS = 300.0
DOWNLOAD_SECONDS = 10.0  # a shutdown waits so long for the client of a job that has just finished
BUSY_RETRY_SECONDS = 10.0
MIN_JOB_BYTES = 64 * 1024  # every job counts at least so much, so that the number of jobs is limited, too
DEFAULT_AUDIO_FORMAT = (2, 48_000)  # channels and sample rate of a model outside the catalogue: the largest


class GeneratorProtocol(Protocol):
    """The part of `Generator` that jobs use."""

    async def admit(self, request: schemas.GenerationRequest, context: RequestContext) -> AdmittedRequest:
        """Admit a request at the runner."""

    async def generate_audio(self, admitted: AdmittedRequest, on_event: EventCallback) -> EncodedAudio:
        """Return the whole clip as a WAV."""


class Jobs:
    """The jobs of one process. All methods run on its event loop.

    Args:
        generator: generates the clips.
        settings: the service's settings; they limit the job storage and the lifetime of finished jobs.
        drain: the shutdown of this process. Jobs that are not finished when its time is up fail.
        in_flight: counts the running jobs.
        abandoned_seconds: a job that no client polls for so long is cancelled.

    Attributes:
        reserved: bytes of job storage that all jobs together occupy.
    """

    def __init__(
        self,
        generator: GeneratorProtocol,
        settings: Settings,
        drain: Drain,
        in_flight: InFlight,
        abandoned_seconds: float = ABANDONED_SECONDS,
    ) -> None:
        self._generator = generator
        self._default_model = settings.default_model
        self._limit_bytes = settings.job_megabytes * 1_000_000
        self._lifetime_seconds = settings.job_minutes * 60
        self._drain = drain
        self._in_flight = in_flight
        self._abandoned_seconds = abandoned_seconds
        self._jobs: dict[str, Job] = {}
        self.reserved = 0

    def __len__(self) -> int:
        return len(self._jobs)

    async def submit(self, request: schemas.GenerationRequest, context: RequestContext) -> Job:
        """Start a job, which runs whether or not its client stays connected.

        Raises:
            JobStorageFull: the job storage is full.
            InvalidRequest: the clip is larger than the job storage.
            MusicGenError: the runner refuses the request.
        """
        size = self._expected_bytes(request)
        self._reserve(size)
        try:
            admitted = await self._generator.admit(request, context)
        except BaseException:
            self.reserved -= size
            raise
        job = Job(admitted, size)
        self._jobs[job.id] = job
        self._set_timer(job)
        job.task = asyncio.get_running_loop().create_task(self._run(job))
        return job

    def get(self, job_id: str) -> Job:
        """Return a job, and restart the time after which it counts as abandoned.

        Raises:
            UnknownJob: there is no such job.
        """
        job = self._jobs.get(job_id)
        if job is None:
            raise UnknownJob(
                "There is no such job.",
                hint="It was downloaded, deleted or has expired, or it belongs to another server or to this one "
                "before a restart. The same seed generates the same clip again.",
            )
        if not job.finished:
            self._set_timer(job)
        return job

    def cancel_or_delete(self, job_id: str) -> None:
        """Cancel a job, or remove it if it is finished.

        Raises:
            UnknownJob: there is no such job.
        """
        job = self.get(job_id)
        if job.finished:
            self.remove(job)
        else:
            self._cancel(job)

    def remove(self, job: Job) -> None:
        """Remove a finished job. Responses that are sending its audio may finish."""
        self._jobs.pop(job.id, None)
        if job.timer:
            job.timer.cancel()
        job.removed.set()
        self._update_reserved_bytes(job)

    @contextmanager
    def hold_audio(self, job: Job) -> Iterator[EncodedAudio]:
        """Yield the finished clip of a job, and keep it in memory while the block runs.

        Raises:
            NotReady: the job is not done.
        """
        if job.encoded is None:
            match job.state:
                case "cancelled":
                    hint = ""
                case "failed":
                    hint = "Its `error` gives the reason."
                case _:
                    hint = "GET /jobs/{id}?wait=30 waits for it."
            raise NotReady(f"The job has no audio: it is {job.state}.", hint=hint)
        with self._count_reader(job), self._in_flight:
            yield job.encoded

    @contextmanager
    def hold_stream(self, job: Job) -> Iterator[PcmBuffer]:
        """Yield the clip of a running job, and keep it in memory while the block runs. The job is not abandoned then.

        Raises:
            NotReady: the job is finished.
        """
        if job.buffer is None:
            hint = "GET /jobs/{id}/audio has the whole clip." if job.encoded else ""
            raise NotReady(f"The job cannot be streamed: it is {job.state}.", hint=hint)
        with self._count_reader(job):
            yield job.buffer

    @contextmanager
    def _count_reader(self, job: Job) -> Iterator[None]:
        job.readers += 1
        try:
            yield
        finally:
            job.readers -= 1
            self._update_reserved_bytes(job)

    # ---- states

    async def _run(self, job: Job) -> None:
        started_at = now()
        with self._in_flight:
            try:
                encoded = await self._drain.finish(self._generator.generate_audio(job.admitted, job.on_event))
            except MusicGenError as error:
                job.error = error.without_traceback()
                count_error(error.code)
                self._finish(job, "failed")
            else:
                job.encoded, job.audio_seconds = encoded, job.duration
                self._finish(job, "done")
            finally:
                code = f" code={job.error.code}" if job.error else ""
                logger.info(
                    f"id={job.admitted.http_request_id} job seconds={now() - started_at:.3f} state={job.state}{code}"
                )
                job.task = None  # a task keeps its exception, whose traceback keeps the audio
            if job.encoded:  # its client is probably waiting for it and downloads it now
                with suppress(TimeoutError):
                    await asyncio.wait_for(job.removed.wait(), DOWNLOAD_SECONDS)

    def _cancel(self, job: Job) -> None:
        if not job.finished:
            self._finish(job, "cancelled")
            assert job.task is not None
            job.task.cancel()

    def _finish(self, job: Job, state: schemas.JobState) -> None:
        job.state, job.position = state, None
        if job.buffer and state != "done":
            job.buffer.fail(job.error or UnknownJob("The job was cancelled."))
        job.buffer = None
        self._update_reserved_bytes(job)
        self._set_timer(job)
        job.notify()

    def _set_timer(self, job: Job) -> None:
        if job.timer:
            job.timer.cancel()
        loop = asyncio.get_running_loop()
        if job.finished:
            job.timer = loop.call_later(self._lifetime_seconds, self.remove, job)
        else:
            job.timer = loop.call_later(self._abandoned_seconds, self._cancel_abandoned, job)

    def _cancel_abandoned(self, job: Job) -> None:
        if job.readers:
            self._set_timer(job)
        else:
            self._cancel(job)

    # ---- memory

    def _update_reserved_bytes(self, job: Job) -> None:
        """Reserve the bytes of a finished job's clip. While a response streams it, the reservation does not change."""
        if not job.finished or (job.readers and not job.encoded):
            return
        if job.removed.is_set() and not job.readers:
            job.encoded, size = None, 0
        else:
            size = max(MIN_JOB_BYTES, len(job.encoded.wav) if job.encoded else 0)
        self.reserved += size - job.reserved_bytes
        job.reserved_bytes = size

    def _expected_bytes(self, request: schemas.GenerationRequest) -> int:
        """Return the size of the requested WAV in bytes."""
        card = model_catalog.find_model(request.model or self._default_model)
        channels, sample_rate = (card.channels, card.sample_rate) if card else DEFAULT_AUDIO_FORMAT
        samples = math.ceil(request.duration * sample_rate)
        return max(MIN_JOB_BYTES, schemas.WAV_HEADER_BYTES + schemas.BYTES_PER_SAMPLE * channels * samples)

    def _reserve(self, size: int) -> None:
        if size > self._limit_bytes:
            raise InvalidRequest(
                "The clip is larger than the server's job storage.",
                hint="Request a shorter clip, or use POST /generate.",
                field="duration",
            )
        if self.reserved + size > self._limit_bytes:
            raise JobStorageFull(
                "Job storage is full.",
                hint="Download or delete finished jobs, retry later, or use POST /generate.",
                retry_after=self._retry_after(),
            )
        self.reserved += size

    def _retry_after(self) -> float:
        """Return the seconds until a job may be removed: until one expires, or soon if one is running."""
        remaining = [job.timer.when() - now() for job in self._jobs.values() if job.finished and job.timer]
        running = len(remaining) < len(self._jobs)
        if running or not remaining:
            remaining.append(BUSY_RETRY_SECONDS)
        return max(1.0, min(remaining))
