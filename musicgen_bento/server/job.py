"""One job: a request that the HTTP process finishes without an open connection.

queued ─ loading ─ queued ─ running ─ done ─── downloaded, deleted or expired: removed
   └────────┴─────────┴────────┴───── failed ──┤
   └────────┴─────────┴────────┴───── cancelled┘
"""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import suppress

from musicgen_bento import schemas
from musicgen_bento.engine.types import AudioChunk, Event, Queued, Started
from musicgen_bento.errors import MusicGenError
from musicgen_bento.server.audio_buffer import PcmBuffer
from musicgen_bento.server.generation import AdmittedRequest
from musicgen_bento.server.responses import EncodedAudio
from musicgen_bento.server.tasks import Broadcast

PROGRESS_SECONDS = 0.2


class Job:
    """One job and its state. Only `Jobs` and the events of its request change it.

    Attributes:
        admitted: the job's request at the runner.
        reserved_bytes: bytes of job storage that the job occupies.
        version: number of changes, from 1.
        position: position in the queue, 1 is next; None while the job is in no queue.
        audio_seconds: seconds of audio generated so far.
        encoded: the finished clip.
        buffer: the clip while it is generated; None when the job is finished.
        readers: number of responses that are sending the job's audio.
        removed: set when the job is removed.
        timer: cancels an abandoned job, or removes a finished one.
    """

    def __init__(self, admitted: AdmittedRequest, reserved_bytes: int) -> None:
        self.id = secrets.token_urlsafe(24)
        self.admitted = admitted
        self.reserved_bytes = reserved_bytes
        self.state: schemas.JobState = "queued"
        self.version = 1
        self.position: int | None = None
        self.model = admitted.model
        self.duration = admitted.duration
        self.audio_seconds = 0.0
        self.error: MusicGenError | None = None
        self.encoded: EncodedAudio | None = None
        # A stream cannot have the levels loudness, peak and rms, which need the whole clip; it is clipped instead.
        self.buffer: PcmBuffer | None = PcmBuffer("none" if admitted.normalize == "none" else "clip")
        self.readers = 0
        self.removed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._changed = Broadcast()
        self._sample_rate = 0
        self._last_update = -math.inf

    @property
    def finished(self) -> bool:
        """Whether the job is done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")

    def on_event(self, event: Event) -> None:
        """Apply an event of the request."""
        if self.finished:  # a cancelled job may still get events that were sent before
            return
        if self.buffer:
            self.buffer.on_event(event)
        match event:
            case Queued(queue_position, loading):
                self.state, self.position = ("loading", None) if loading else ("queued", queue_position + 1)
                self.notify()
            case Started():
                self.state, self.position = "running", None
                self.model, self._sample_rate = event.model, event.sample_rate
                self.duration = event.samples / event.sample_rate
                self.notify()
            case AudioChunk(samples, start):
                self.audio_seconds = (start + samples.shape[1]) / self._sample_rate
                if now() - self._last_update >= PROGRESS_SECONDS:  # there may be hundreds of chunks per second
                    self.notify()

    def notify(self) -> None:
        """Count a change, and wake the clients that wait for one."""
        self.version += 1
        self._last_update = now()
        self._changed.notify()

    async def wait(self, seconds: float, version: int | None) -> None:
        """Wait until the job is finished or newer than `version`, at most `seconds`. None is the current version."""
        known_version = self.version if version is None else version
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.version <= known_version and not self.finished:
                    await self._changed.wait()

    def view(self) -> schemas.Job:
        """Return the job as a client gets it."""
        error = self.error and schemas.ErrorBody.model_validate(self.error.to_dict()).error
        expires_in = round(max(0.0, self.timer.when() - now()), 1) if self.finished and self.timer else None
        return schemas.Job(
            id=self.id,
            state=self.state,
            version=self.version,
            position=self.position,
            model=self.model,
            seed=self.admitted.seed,
            duration=self.duration,
            audio_seconds=round(self.audio_seconds, 3),
            error=error,
            expires_in=expires_in,
        )


def now() -> float:
    """Return the time of the running loop in seconds."""
    return asyncio.get_running_loop().time()
