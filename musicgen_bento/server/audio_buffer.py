"""A clip's sound while it is made: written as fast as it comes, read by anyone at any pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from musicgen_bento import audio
from musicgen_bento.engine.types import AudioChunk, Event, Finished, Started
from musicgen_bento.errors import GenerationFailed, MusicGenError

PIECE = 64 * 1024


class PcmBuffer:
    """What there is of a clip, as 16-bit PCM. It belongs to one event loop.

    Args:
        normalize: how to set the level of each piece.
    """

    def __init__(self, normalize: audio.StreamNormalize) -> None:
        self._normalize = normalize
        self._sound = bytearray()
        self._started: Started | None = None
        self._error: MusicGenError | None = None
        self._news = asyncio.Event()

    @property
    def held(self) -> int:
        """Bytes of it that are in memory."""
        return len(self._sound)

    def listen(self, event: Event) -> None:
        """Take in what the runner says of the clip."""
        match event:
            case Started():
                self._started = event
            case AudioChunk(samples, position) if self._fits(samples.shape[0], samples.shape[1], position):
                self._sound += audio.pcm(audio.cut(samples, self._normalize))
            case AudioChunk():
                self._error = GenerationFailed("A piece of the clip was lost.", hint="Try again.")
            case Finished() if self._started and len(self._sound) < size(self._started):
                self._error = GenerationFailed("The clip ended too early.", hint="Try again.")
            case _:
                return
        self._wake()

    def fail(self, error: MusicGenError) -> None:
        """There will be no more of it. Readers get what there is, then the error."""
        self._error = self._error or error
        self._wake()

    async def begun(self) -> Started:
        """What it will be like, once that is known.

        Raises:
            MusicGenError: there will be nothing.
        """
        while self._started is None:
            await self._more()
        return self._started

    async def pieces(self) -> AsyncIterator[bytes]:
        """All of it, from the first sample to the last, 64 KiB at most at a time.

        Raises:
            MusicGenError: there is no more of it, and that is not all.
        """
        end, at = size(await self.begun()), 0
        while at < end:
            if at == len(self._sound):
                await self._more()
            else:
                piece = bytes(self._sound[at : at + PIECE])
                at += len(piece)
                yield piece

    def _fits(self, channels: int, samples: int, position: int) -> bool:
        if self._started is None or channels != self._started.channels:
            return False
        here = 2 * channels * position
        return here == len(self._sound) and here + 2 * channels * samples <= size(self._started)

    async def _more(self) -> None:
        if self._error:
            raise self._error
        await self._news.wait()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


def size(started: Started) -> int:
    """Bytes of a whole clip's samples."""
    return 2 * started.channels * started.samples
