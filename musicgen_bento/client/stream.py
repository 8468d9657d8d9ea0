"""A clip while a server makes it: its bytes as they come, and how far they are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from typing import TypedDict
from urllib.parse import unquote

from musicgen_bento.client.transport import StreamedResponse, StreamTruncated, Unreachable, bad_answer, cancelled
from musicgen_bento.schemas import WAV_HEADER


class AudioMetadata(TypedDict):
    """What the headers of an answer say of its clip."""

    seed: int
    model: str
    sample_rate: int
    channels: int
    duration: float


def about(headers: Mapping[str, str]) -> AudioMetadata:
    """What they say.

    Raises:
        BadAnswer: it is no clip's answer.
    """
    try:
        return AudioMetadata(
            seed=int(headers["X-Seed"]),
            model=unquote(headers["X-Model"]),
            sample_rate=int(headers["X-Audio-Sample-Rate"]),
            channels=int(headers["X-Audio-Channels"]),
            duration=float(headers["X-Audio-Duration"]),
        )
    except (KeyError, ValueError):
        raise bad_answer() from None


class Stream:
    """An iterator of bytes, a WAV when they are put together. Read it to its end, or `close` it, or use `with`.

    Attributes:
        seed: with the same request it makes this clip again.
        model: the id of the model that makes it.
        sample_rate: Hz.
        channels: 1 or 2.
        duration: seconds in the end.
        position: seconds that have been given so far.

    Raises:
        CutShort: while it is read: it breaks off before its end. Nothing else marks a part that is not the whole.
        MusicGenError: while it is read: it was cancelled, or is out of time.
    """

    def __init__(
        self, opened: StreamedResponse, samples: bool, stopped: threading.Event, end: Callable[[], None]
    ) -> None:
        told = about(opened.headers)
        self.seed, self.model, self.duration = told["seed"], told["model"], told["duration"]
        self.sample_rate, self.channels = told["sample_rate"], told["channels"]
        self.position = 0.0
        self._opened = opened
        self._skip = WAV_HEADER if samples else 0
        self._stopped = stopped
        self._end = end
        self._pieces = self._read()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Read no more. The server stops making what is not made yet. Harmless where it is over."""
        with suppress(ValueError):  # another thread is reading: it closes it
            self._pieces.close()
        self._finish()

    def _read(self) -> Generator[bytes, None, None]:
        second = 2 * self.channels * self.sample_rate
        received = 0
        try:
            for piece in self._opened.pieces:
                kept = piece[max(0, self._skip - received) :]
                received += len(piece)
                self.position = max(0, received - WAV_HEADER) / second
                if kept:
                    yield kept
        except Unreachable:
            if self._stopped.is_set():
                raise cancelled() from None
            raise StreamTruncated(
                f"The stream broke off after {self.position:.1f} of {self.duration:g} s.",
                hint=f"The seed {self.seed} makes the same clip again.",
            ) from None
        finally:
            self._finish()

    def _finish(self) -> None:
        with suppress(ValueError):  # another thread is reading: it closes it
            self._opened.pieces.close()
        self._end()
