"""One clip, made by a server: a job is submitted, followed and fetched, and deleted by whoever leaves early.

No answer is waited for longer than some seconds, so no proxy cuts the connection; the seed is drawn here, so what is
lost is made again the same.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import quote

from musicgen_bento.client.stream import Stream, about
from musicgen_bento.client.transport import (
    READ_SECONDS,
    Deadline,
    Server,
    ServerResponse,
    StreamedResponse,
    Transport,
    bad_answer,
    cancelled,
    passing,
)
from musicgen_bento.clip import Clip, Progress, ProgressCallback
from musicgen_bento.errors import GenerationFailed, MusicGenError, NotReady, UnknownJob
from musicgen_bento.schemas import MAX_SEED, GenerationRequest, Job

POLL_SECONDS = 20.0  # how long the server may hold an answer back while nothing changes
LEAVE_SECONDS = 5.0  # how long a cancellation may take
STREAM_SECONDS = 300.0  # a big model on a CPU is silent for long between two pieces

Result = TypeVar("Result")


class Generation:
    """A clip that is being made; `result` waits for it, `cancel` ends it, from any thread.

    Args:
        server: who makes it.
        request: what to make.
        timeout: seconds from `result` on; None is no limit.
    """

    def __init__(self, server: Server, request: GenerationRequest, timeout: float | None = None) -> None:
        body = request.model_dump(exclude_unset=True, exclude_none=True)  # the rest is the server's to choose
        self._body: Mapping[str, Any] = {"seed": secrets.randbelow(MAX_SEED + 1), **body}
        self._server = server
        self._timeout = timeout
        self._stopped = threading.Event()
        self._job: str | None = None

    def result(self, progress: ProgressCallback | None = None) -> Clip:
        """The clip, once it is made. However this ends, nothing of it stays on the server.

        Args:
            progress: told whatever changes, in this thread. What it raises ends the clip.

        Raises:
            MusicGenError: it could not be made, or was cancelled.
        """
        tell = progress or (lambda *_: None)
        with Transport(self._server, Deadline(self._timeout), self._stopped) as calls:
            return self._insist(calls, lambda: self._make(calls, tell))

    def stream(self, progress: ProgressCallback | None = None, *, samples: bool = False) -> Stream:
        """The clip while it is made: waits until it has begun. Close what is not read to its end.

        Args:
            progress: told whatever changes until then, in this thread.
            samples: leave out the header of the WAV.

        Raises:
            MusicGenError: it could not be begun, or was cancelled.
        """
        tell = progress or (lambda *_: None)
        calls = Transport(self._server, Deadline(self._timeout), self._stopped)
        try:
            opened = self._insist(calls, lambda: self._begin(calls, tell))
            return Stream(opened, samples, self._stopped, lambda: self._end(calls))
        except BaseException:
            self._end(calls)
            raise

    def cancel(self) -> None:
        """End it, here and on the server. Harmless where it has ended."""
        self._stopped.set()
        self._delete()

    def _insist(self, calls: Transport, attempt: Callable[[], Result | MusicGenError]) -> Result:
        """What an attempt gives, made again where it failed in passing."""
        ended = attempt()
        for repeat in range(self._server.retries):
            if not isinstance(ended, MusicGenError) or not (isinstance(ended, UnknownJob) or passing(ended)):
                break
            calls.pause(ended, repeat)
            ended = attempt()
        if isinstance(ended, MusicGenError):
            raise ended
        return ended

    def _begin(self, calls: Transport, tell: ProgressCallback) -> StreamedResponse | MusicGenError:
        """The sound of one job, or how it ended without any."""
        try:
            job = self._follow(calls, tell, ("queued", "loading"))
            if job.state in ("failed", "cancelled"):
                self._delete()
                return _failure(job)
            if job.state == "running":
                with suppress(NotReady):  # it is over by now
                    return calls.open(f"{_path(job.id)}/stream", silence=STREAM_SECONDS)
            with suppress(NotReady):  # it has failed meanwhile
                return calls.open(f"{_path(job.id)}/audio?keep=true", silence=READ_SECONDS)
            job = calls.ask("GET", _path(job.id)).read(Job)
            self._delete()
            return _failure(job)
        except UnknownJob as error:  # the server has been started again
            self._job = None
            return error

    def _end(self, calls: Transport) -> None:
        calls.close()
        self._delete()

    def _follow(self, calls: Transport, tell: ProgressCallback, states: tuple[str, ...]) -> Job:
        """A new job, once it is in none of these states any more."""
        job = calls.ask("POST", "/jobs", json=self._body).read(Job)
        self._job = job.id
        _tell(tell, job)
        while job.state in states:
            after = {"wait": POLL_SECONDS, "version": job.version}
            job = calls.ask("GET", _path(job.id), params=after, silence=POLL_SECONDS + READ_SECONDS).read(Job)
            _tell(tell, job)
        if self._stopped.is_set():
            raise cancelled()
        return job

    def _make(self, calls: Transport, tell: ProgressCallback) -> Clip | MusicGenError:
        """One job's clip, or how it ended without one. What a call raises has been tried often enough."""
        try:
            job = self._follow(calls, tell, ("queued", "loading", "running"))
            if job.state != "done":
                return _failure(job)
            # Kept until all of it is here: the server cannot see what the network loses.
            return _clip(calls.ask("GET", f"{_path(job.id)}/audio", params={"keep": "true"}))
        except UnknownJob as error:  # the server has been started again
            self._job = None
            return error
        finally:
            self._delete()

    def _delete(self) -> None:
        job, self._job = self._job, None
        if job is None:
            return
        once = replace(self._server, retries=0)
        # Where the server cannot be told, it gives the job up by itself: nobody asks after it.
        with suppress(MusicGenError), Transport(once, Deadline(LEAVE_SECONDS)) as calls:
            calls.ask("DELETE", _path(job))


def _path(job: str) -> str:
    return f"/jobs/{quote(job, safe='')}"


def _tell(tell: ProgressCallback, job: Job) -> None:
    tell(Progress(job.state, job.position, job.audio_seconds, job.duration))


def _failure(job: Job) -> MusicGenError:
    if job.error is None:
        return GenerationFailed("The server cancelled the clip.", hint="Has somebody else deleted its job?")
    return MusicGenError.from_dict({"error": job.error.model_dump()})


def _clip(answer: ServerResponse) -> Clip:
    """The clip an answer holds.

    Raises:
        BadAnswer: it is no WAV, or not told what it is.
    """
    audio = answer.body
    if audio[:4] != b"RIFF" or audio[8:12] != b"WAVE":
        raise bad_answer()
    return Clip(audio, **about(answer.headers))
