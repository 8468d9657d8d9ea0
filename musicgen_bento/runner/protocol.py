"""The events of a clip as bytes, for the stream between the runner and the front.

    frame    kind: 1 byte    length: uint32    payload: length bytes
    W S F X  waiting, started, finished, failed: the payload is JSON
    C        chunk: position uint64, channels uint16, then float32 [C, T]; all little-endian

BentoML cuts a streamed body into pieces of its own, so the reader puts the frames together again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np

from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, Queued, Started
from musicgen_bento.errors import MusicGenError

_HEAD = struct.Struct("<cI")
_CHUNK = struct.Struct("<QH")


def encode(event: Event) -> bytes:
    """One frame."""
    match event:
        case AudioChunk(samples, position):
            audio = np.ascontiguousarray(samples, dtype="<f4").tobytes()
            return _frame(b"C", _CHUNK.pack(position, samples.shape[0]) + audio)
        case Queued():
            return _frame(b"W", json.dumps(asdict(event)).encode())
        case Started():
            return _frame(b"S", json.dumps(asdict(event)).encode())
        case Finished():
            return _frame(b"F", b"{}")
        case Failed(error):
            return _frame(b"X", json.dumps(error.to_dict()).encode())


class FrameDecoder:
    """Frames out of pieces of any size."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, piece: bytes) -> Iterator[Event]:
        """Take a piece and give the events that are complete with it.

        Raises:
            ValueError: the bytes are no frames.
        """
        self._bytes += piece
        while len(self._bytes) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._bytes)
            end = _HEAD.size + length
            if len(self._bytes) < end:
                return
            payload = bytes(self._bytes[_HEAD.size : end])
            del self._bytes[:end]
            yield _decode(kind, payload)


def _frame(kind: bytes, payload: bytes) -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload


def _decode(kind: bytes, payload: bytes) -> Event:
    match kind:
        case b"C":
            position, channels = _CHUNK.unpack_from(payload)
            samples = np.frombuffer(payload, dtype="<f4", offset=_CHUNK.size).reshape(channels, -1)
            return AudioChunk(samples, position)
        case b"W":
            return Queued(**json.loads(payload))
        case b"S":
            return Started(**json.loads(payload))
        case b"F":
            return Finished()
        case b"X":
            return Failed(MusicGenError.from_dict(json.loads(payload)))
        case _:
            raise ValueError(f"no such kind of frame: {kind!r}")
