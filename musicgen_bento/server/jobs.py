"""Jobs: clips that are made while nobody holds a connection open for them. In this process's memory, and bounded there.

queued ─ loading ─ queued ─ running ─ done ─── fetched, deleted or too old: forgotten
   └────────┴─────────┴────────┴───── failed ──┤
   └────────┴─────────┴────────┴───── cancelled┘
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from musicgen_bento import model_catalog, schemas
from musicgen_bento.config import Settings
from musicgen_bento.engine.types import AudioChunk, Event, EventCallback, Queued, Started
from musicgen_bento.errors import InvalidRequest, JobStorageFull, MusicGenError, NotReady, UnknownJob
from musicgen_bento.runner.metrics import count_error
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.request_context import RequestContext
from musicgen_bento.server.shutdown import Drain, InFlight
from musicgen_bento.server.studio import AdmittedRequest, EncodedAudio

ABANDONED_SECONDS = 300.0
COLLECT_SECONDS = 10.0  # a server that is told to stop waits so long for the music it has just made to be fetched
BUSY_SECONDS = 10.0
PROGRESS_SECONDS = 0.2
SMALLEST = 64 * 1024  # what any job is counted as, so that their number is bounded too
WIDEST = (2, 48_000)  # channels and rate of a model that is not in the catalogue

_log = logging.getLogger("bentoml.musicgen")


class Maker(Protocol):
    """Has clips made: see `Studio`."""

    async def take(self, request: schemas.GenerationRequest, current: RequestContext) -> AdmittedRequest:
        """See `Studio.take`."""

    async def make(self, order: AdmittedRequest, listen: EventCallback) -> EncodedAudio:
        """See `Studio.make`."""


class Job:
    """One clip and what has become of it. Changed by Jobs and by its clip's events alone."""

    def __init__(self, order: AdmittedRequest, size: int) -> None:
        self.id = secrets.token_urlsafe(24)
        self.order = order
        self.size = size  # bytes it is counted as
        self.state: schemas.JobState = "queued"
        self.version = 1
        self.position: int | None = None
        self.model = order.model
        self.duration = order.duration
        self.audio_seconds = 0.0
        self.error: MusicGenError | None = None
        self.music: EncodedAudio | None = None
        # What it sounds like while it is made. A level that needs the whole clip has to wait for it.
        self.recording: PcmBuffer | None = PcmBuffer("none" if order.normalize == "none" else "clip")
        self.readers = 0
        self.forgotten = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None  # to be given up, or forgotten
        self._news = asyncio.Event()
        self._rate = 0
        self._told = -math.inf

    @property
    def over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("done", "failed", "cancelled")

    def listen(self, event: Event) -> None:
        """Take in what the runner says of the clip."""
        if self.over:  # what was on its way when it was cancelled
            return
        if self.recording:
            self.recording.listen(event)
        match event:
            case Queued(place, loading):
                self.state, self.position = ("loading", None) if loading else ("queued", place + 1)
                self.changed()
            case Started(model, sample_rate, _, samples):
                self.state, self.position = "running", None
                self.model, self.duration, self._rate = model, samples / sample_rate, sample_rate
                self.changed()
            case AudioChunk(samples, position):
                self.audio_seconds = (position + samples.shape[1]) / self._rate
                if _now() - self._told >= PROGRESS_SECONDS:  # there may be hundreds of them in a second
                    self.changed()

    def changed(self) -> None:
        """Tell those who wait."""
        self.version += 1
        self._told = _now()
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def wait(self, seconds: float, version: int | None) -> None:
        """Until it is newer than `version`, or over, or the time is."""
        known = self.version if version is None else version
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.version <= known and not self.over:
                    await self._news.wait()

    def view(self) -> schemas.Job:
        """As a client sees it."""
        error = self.error and schemas.ErrorBody.model_validate(self.error.to_dict()).error
        return schemas.Job(
            id=self.id,
            state=self.state,
            version=self.version,
            position=self.position,
            model=self.model,
            seed=self.order.seed,
            duration=self.duration,
            audio_seconds=round(self.audio_seconds, 3),
            error=error,
            expires_in=round(max(0.0, self.timer.when() - _now()), 1) if self.over and self.timer else None,
        )


class Jobs:
    """The jobs of one process. Everything here runs on its event loop.

    Args:
        maker: has the clips made.
        settings: of the service; they bound the memory, and how long a job is kept that is over.
        drain: when the time is up, what is not finished fails.
        work: what runs is counted there.
        abandoned_seconds: a job that is not over and that nobody has asked after for so long is cancelled.
    """

    def __init__(
        self,
        maker: Maker,
        settings: Settings,
        drain: Drain,
        work: InFlight,
        abandoned_seconds: float = ABANDONED_SECONDS,
    ) -> None:
        self._maker = maker
        self._default_model = settings.default_model
        self._limit = settings.job_megabytes * 1_000_000
        self._kept_seconds = settings.job_minutes * 60
        self._drain = drain
        self._work = work
        self._abandoned_seconds = abandoned_seconds
        self._jobs: dict[str, Job] = {}
        self.reserved = 0
        """Bytes that are spoken for."""

    def __len__(self) -> int:
        return len(self._jobs)

    async def submit(self, request: schemas.GenerationRequest, current: RequestContext) -> Job:
        """Have a clip made. It is made whether or not the caller stays.

        Raises:
            JobsFull: there is no memory left for its music; `retry_after` says when there may be.
            MusicGenError: whatever else `Studio.take` raises.
        """
        size = self._size(request)
        self._reserve(size)
        try:
            order = await self._maker.take(request, current)
        except BaseException:
            self.reserved -= size
            raise
        job = Job(order, size)
        self._jobs[job.id] = job
        self._set_timer(job)
        job.task = asyncio.get_running_loop().create_task(self._run(job))
        return job

    def find(self, name: str) -> Job:
        """The job of this id, which is not abandoned as long as someone does this.

        Raises:
            UnknownJob: there is none.
        """
        job = self._jobs.get(name)
        if job is None:
            raise UnknownJob(
                "There is no such job here.",
                hint="Its music was fetched, it was deleted or too old, or it is another server's, "
                "or of this one before a restart. The same seed makes the same clip again.",
            )
        if not job.over:
            self._set_timer(job)
        return job

    def drop(self, name: str) -> None:
        """Cancel a job; forget one that is over.

        Raises:
            UnknownJob: there is none.
        """
        job = self.find(name)
        if job.over:
            self.forget(job)
        else:
            self._cancel(job)

    @contextmanager
    def reading(self, job: Job) -> Iterator[EncodedAudio]:
        """Its music, counted for as long as it is read.

        Raises:
            NotReady: there is none.
        """
        if job.music is None:
            hint = "Its `error` says why." if job.state == "failed" else "GET /jobs/{id}?wait=30 waits for it."
            raise NotReady(f"The job has no music: it is {job.state}.", hint=hint if job.state != "cancelled" else "")
        with self._reader(job), self._work:
            yield job.music

    @contextmanager
    def listening(self, job: Job) -> Iterator[PcmBuffer]:
        """Its sound while it is made, counted for as long as it is read; nobody who listens has left.

        Raises:
            NotReady: it is over.
        """
        if job.recording is None:
            hint = "GET /jobs/{id}/audio has all of it." if job.music else ""
            raise NotReady(f"The job is over: it is {job.state}.", hint=hint)
        with self._reader(job):
            yield job.recording

    @contextmanager
    def _reader(self, job: Job) -> Iterator[None]:
        """One who reads of it, for as long as the block lasts."""
        job.readers += 1
        try:
            yield
        finally:
            job.readers -= 1
            self._book(job)

    # ---- a job's life

    async def _run(self, job: Job) -> None:
        began = _now()
        with self._work:
            try:
                music = await self._drain.finish(self._maker.make(job.order, job.listen))
            except MusicGenError as error:
                job.error = error.without_traceback()
                count_error(error.code)
                self._end(job, "failed")
            else:
                job.music, job.audio_seconds = music, job.duration
                self._end(job, "done")
            finally:
                code = f" code={job.error.code}" if job.error else ""
                _log.info(f"id={job.order.id} job seconds={_now() - began:.3f} state={job.state}{code}")
                job.task = None  # how it ended would keep what was on the way: the music
            if job.music:  # whoever waits for it is about to fetch it
                with suppress(TimeoutError):
                    await asyncio.wait_for(job.forgotten.wait(), COLLECT_SECONDS)

    def _cancel(self, job: Job) -> None:
        if not job.over:
            self._end(job, "cancelled")
            assert job.task is not None
            job.task.cancel()

    def _end(self, job: Job, state: schemas.JobState) -> None:
        job.state, job.position = state, None
        if job.recording and state != "done":
            job.recording.fail(job.error or UnknownJob("The job was cancelled."))
        job.recording = None
        self._book(job)
        self._set_timer(job)
        job.changed()

    def forget(self, job: Job) -> None:
        """Keep it no longer: it is fetched, deleted or too old. Whoever reads its music may finish."""
        self._jobs.pop(job.id, None)
        if job.timer:
            job.timer.cancel()
        job.forgotten.set()
        self._book(job)

    def _set_timer(self, job: Job) -> None:
        if job.timer:
            job.timer.cancel()
        loop = asyncio.get_running_loop()
        if job.over:
            job.timer = loop.call_later(self._kept_seconds, self.forget, job)
        else:
            job.timer = loop.call_later(self._abandoned_seconds, self._abandon, job)

    def _abandon(self, job: Job) -> None:
        if job.readers:
            self._set_timer(job)
        else:
            self._cancel(job)

    # ---- memory

    def _book(self, job: Job) -> None:
        """Count what it holds. Whoever reads of it holds it: until they leave, it stays as large as it was."""
        if not job.over or (job.readers and not job.music):
            return
        if job.forgotten.is_set() and not job.readers:
            job.music, size = None, 0
        else:
            size = max(SMALLEST, len(job.music.wav) if job.music else 0)
        self.reserved += size - job.size
        job.size = size

    def _size(self, request: schemas.GenerationRequest) -> int:
        """Bytes of the WAV that it asks for."""
        card = model_catalog.find_model(request.model or self._default_model)
        channels, rate = (card.channels, card.sample_rate) if card else WIDEST
        return max(SMALLEST, schemas.WAV_HEADER + 2 * channels * math.ceil(request.duration * rate))

    def _reserve(self, size: int) -> None:
        if size > self._limit:
            raise InvalidRequest(
                "A clip of this length is larger than all that the server keeps for jobs.",
                hint="Ask for a shorter one, or take POST /generate.",
                field="duration",
            )
        if self.reserved + size > self._limit:
            raise JobStorageFull(
                "The memory for the music of jobs is spoken for.",
                hint="Fetch or delete the jobs that are done, ask again later, or take POST /generate.",
                retry_after=self._room_in(),
            )
        self.reserved += size

    def _room_in(self) -> float:
        """Seconds until there may be some: soon where a clip is being made, as it is fetched once it is done."""
        ends = [job.timer.when() - _now() for job in self._jobs.values() if job.over and job.timer]
        making = len(ends) < len(self._jobs)
        return max(1.0, min([*ends, BUSY_SECONDS] if making or not ends else ends))


def _now() -> float:
    return asyncio.get_running_loop().time()
