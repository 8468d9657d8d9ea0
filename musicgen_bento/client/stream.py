"""A clip that arrives while the server generates it, as an iterator of bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import unquote

from musicgen_bento.client.errors import StreamTruncated, Unreachable, cancelled, invalid_response
from musicgen_bento.client.transport import StreamedResponse
from musicgen_bento.schemas import BYTES_PER_SAMPLE, WAV_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class AudioMetadata:
    """The attributes of a clip that the headers of an audio response carry; see Clip for their meaning."""

    seed: int
    model: str
    sample_rate: int
    channels: int
    duration: float

    @classmethod
    def from_headers(cls, headers: Mapping[str, str]) -> AudioMetadata:
        """Parse the headers of an audio response.

        Raises:
            InvalidResponse: a header is missing or invalid.
        """
        try:
            return cls(
                seed=int(headers["X-Seed"]),
                model=unquote(headers["X-Model"]),
                sample_rate=int(headers["X-Audio-Sample-Rate"]),
                channels=int(headers["X-Audio-Channels"]),
                duration=float(headers["X-Audio-Duration"]),
            )
        except (KeyError, ValueError):
            raise invalid_response() from None


class Stream:
    """An iterator over the bytes of a clip; joined, they are a WAV file. Read it to its end, `close` it, or use `with`.

    Attributes:
        seed: the same request with this seed gives the same clip.
        model: id of the model that generates the clip.
        sample_rate: Hz.
        channels: 1 or 2.
        duration: seconds of the whole clip.
        position: seconds of audio that have been read.

    Raises:
        StreamTruncated: during iteration; the stream ended early. Only this error marks an incomplete clip.
        MusicGenError: during iteration; the clip was cancelled, or its timeout expired.
    """

    def __init__(
        self,
        response: StreamedResponse,
        skip_header: bool,
        cancel_event: threading.Event,
        on_close: Callable[[], None],
    ) -> None:
        metadata = AudioMetadata.from_headers(response.headers)
        self.seed = metadata.seed
        self.model = metadata.model
        self.sample_rate = metadata.sample_rate
        self.channels = metadata.channels
        self.duration = metadata.duration
        self.position = 0.0
        self._response = response
        self._skip_bytes = WAV_HEADER_BYTES if skip_header else 0
        self._cancel_event = cancel_event
        self._on_close = on_close
        self._chunks = self._read_chunks()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> bytes:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading, and cancel the clip if it is not complete. Does nothing after the end of the stream."""
        with suppress(ValueError):  # another thread is reading, and closes the generator itself
            self._chunks.close()
        self._release()

    def _read_chunks(self) -> Generator[bytes, None, None]:
        bytes_per_second = BYTES_PER_SAMPLE * self.channels * self.sample_rate
        received_bytes = 0
        try:
            for chunk in self._response.chunks:
                wanted = chunk[max(0, self._skip_bytes - received_bytes) :]
                received_bytes += len(chunk)
                self.position = max(0, received_bytes - WAV_HEADER_BYTES) / bytes_per_second
                if wanted:
                    yield wanted
        except Unreachable:
            if self._cancel_event.is_set():
                raise cancelled() from None
            raise StreamTruncated(
                f"The stream ended early, after {self.position:.1f} of {self.duration:g} s.",
                hint=f"The same request with seed {self.seed} gives the same clip.",
            ) from None
        finally:
            self._release()

    def _release(self) -> None:
        with suppress(ValueError):  # another thread is reading, and closes the generator itself
            self._response.chunks.close()
        self._on_close()
