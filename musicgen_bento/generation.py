"""One clip, made by a server: a job is submitted, followed and fetched, and deleted by whoever leaves early.

No answer is waited for longer than some seconds, so no proxy cuts the connection; the seed is drawn here, so what is
lost is made again the same.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any
from urllib.parse import quote, unquote

from musicgen_bento.calls import READ_SECONDS, Answer, Calls, Deadline, Server, bad_answer, cancelled, passing
from musicgen_bento.clip import Clip, Progress
from musicgen_bento.errors import GenerationFailed, MusicGenError, UnknownJob
from musicgen_bento.schemas import MAX_SEED, GenerationRequest, Job

POLL_SECONDS = 20.0  # how long the server may hold an answer back while nothing changes
LEAVE_SECONDS = 5.0  # how long a cancellation may take


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

    def result(self, progress: Progress | None = None) -> Clip:
        """The clip, once it is made. However this ends, nothing of it stays on the server.

        Args:
            progress: told whatever changes, in this thread. What it raises ends the clip.

        Raises:
            MusicGenError: it could not be made, or was cancelled.
        """
        tell = progress or (lambda *_: None)
        with Calls(self._server, Deadline(self._timeout), self._stopped) as calls:
            ended = self._make(calls, tell)
            for repeat in range(self._server.retries):
                if isinstance(ended, Clip) or not (isinstance(ended, UnknownJob) or passing(ended)):
                    break
                calls.pause(ended, repeat)
                ended = self._make(calls, tell)
        if isinstance(ended, Clip):
            return ended
        raise ended

    def cancel(self) -> None:
        """End it, here and on the server. Harmless where it has ended."""
        self._stopped.set()
        self._delete()

    def _make(self, calls: Calls, tell: Progress) -> Clip | MusicGenError:
        """One job's clip, or how it ended without one. What a call raises has been tried often enough."""
        try:
            job = calls.ask("POST", "/jobs", json=self._body).read(Job)
            self._job = job.id
            _tell(tell, job)
            while job.state in ("queued", "loading", "running"):
                after = {"wait": POLL_SECONDS, "version": job.version}
                job = calls.ask("GET", _path(job.id), params=after, silence=POLL_SECONDS + READ_SECONDS).read(Job)
                _tell(tell, job)
            if self._stopped.is_set():
                raise cancelled()
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
        with suppress(MusicGenError), Calls(once, Deadline(LEAVE_SECONDS)) as calls:
            calls.ask("DELETE", _path(job))


def _path(job: str) -> str:
    return f"/jobs/{quote(job, safe='')}"


def _tell(tell: Progress, job: Job) -> None:
    tell(job.state, job.position, job.audio_seconds, job.duration)


def _failure(job: Job) -> MusicGenError:
    if job.error is None:
        return GenerationFailed("The server cancelled the clip.", hint="Has somebody else deleted its job?")
    return MusicGenError.from_dict({"error": job.error.model_dump()})


def _clip(answer: Answer) -> Clip:
    """The clip an answer holds.

    Raises:
        BadAnswer: it is no WAV, or not told what it is.
    """
    headers, audio = answer.headers, answer.body
    if audio[:4] != b"RIFF" or audio[8:12] != b"WAVE":
        raise bad_answer()
    try:
        return Clip(
            audio,
            seed=int(headers["X-Seed"]),
            model=unquote(headers["X-Model"]),
            sample_rate=int(headers["X-Audio-Sample-Rate"]),
            channels=int(headers["X-Audio-Channels"]),
            duration=float(headers["X-Audio-Duration"]),
        )
    except (KeyError, ValueError):
        raise bad_answer() from None
