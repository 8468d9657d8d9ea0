"""The PCM of one request while it is generated: the runner appends to it, and clients read it at their own pace."""

from __future__ import annotations

from collections.abc import AsyncIterator

from musicgen_bento import audio
from musicgen_bento.engine.types import AudioChunk, Event, Finished, Started
from musicgen_bento.errors import GenerationFailed, MusicGenError
from musicgen_bento.schemas import BYTES_PER_SAMPLE, StreamNormalize
from musicgen_bento.server.tasks import Broadcast

CHUNK_BYTES = 64 * 1024


class PcmBuffer:
    """The 16-bit PCM that a request has so far. It belongs to one event loop.

    Args:
        normalize: how to set the level of each chunk.
    """

    def __init__(self, normalize: StreamNormalize) -> None:
        self._normalize = normalize
        self._pcm = bytearray()
        self._started: Started | None = None
        self._error: MusicGenError | None = None
        self._changed = Broadcast()

    @property
    def size(self) -> int:
        """Bytes in memory."""
        return len(self._pcm)

    def on_event(self, event: Event) -> None:
        """Store an event of the request."""
        match event:
            case Started():
                self._started = event
            case AudioChunk(samples, start) if self._continues(samples.shape[0], samples.shape[1], start):
                self._pcm += audio.encode_pcm(audio.clip_peaks(samples, self._normalize))
            case AudioChunk():
                self._error = GenerationFailed("A chunk of the clip is missing.", hint="Retry the request.")
            case Finished() if self._started and len(self._pcm) < pcm_bytes(self._started):
                self._error = GenerationFailed("The clip ended too early.", hint="Retry the request.")
            case _:
                return
        self._changed.notify()

    def fail(self, error: MusicGenError) -> None:
        """End the buffer with an error. A client first gets the audio in the buffer, then the first error."""
        self._error = self._error or error
        self._changed.notify()

    async def wait_started(self) -> Started:
        """Wait until the length and the format of the clip are known.

        Raises:
            MusicGenError: the request failed before.
        """
        while self._started is None:
            await self._wait_for_change()
        return self._started

    async def iter_chunks(self) -> AsyncIterator[bytes]:
        """Yield the whole clip from its first sample, at most `CHUNK_BYTES` at a time.

        Raises:
            MusicGenError: the request failed; all audio before the failure has been yielded.
        """
        end, position = pcm_bytes(await self.wait_started()), 0
        while position < end:
            if position == len(self._pcm):
                await self._wait_for_change()
            else:
                chunk = bytes(self._pcm[position : position + CHUNK_BYTES])
                position += len(chunk)
                yield chunk

    def _continues(self, channels: int, samples: int, start: int) -> bool:
        """Return whether a chunk has the right channels, begins at the end of the buffer and fits into the clip."""
        if self._started is None or channels != self._started.channels:
            return False
        frame_bytes = BYTES_PER_SAMPLE * channels
        return frame_bytes * start == len(self._pcm) and frame_bytes * (start + samples) <= pcm_bytes(self._started)

    async def _wait_for_change(self) -> None:
        if self._error:
            raise self._error
        await self._changed.wait()


def pcm_bytes(started: Started) -> int:
    """Return the size of a whole clip's samples in bytes."""
    return BYTES_PER_SAMPLE * started.channels * started.samples
