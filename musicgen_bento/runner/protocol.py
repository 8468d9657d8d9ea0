"""Messages between the HTTP process and the runner: the admission of a request, and its events as binary frames.

    frame   kind: 1 byte | length: uint32 | payload: `length` bytes; all numbers are little-endian

    kind    event        payload
    W       Queued       JSON: queue_position, loading
    S       Started      JSON: model, sample_rate, channels, samples
    C       AudioChunk   start: uint64 | channels: uint16 | samples: float32 [C, T]
    F       Finished     JSON: {}
    X       Failed       JSON: the error as `MusicGenError.to_dict` writes it

BentoML splits a streamed response at arbitrary bytes, so FrameDecoder joins the parts to frames again.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from pydantic import BaseModel, ConfigDict

from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, GenerationParams, Queued, Started
from musicgen_bento.errors import MusicGenError

_HEAD = struct.Struct("<cI")
_CHUNK_HEAD = struct.Struct("<QH")


class AdmitMsg(BaseModel):
    """A request for the runner to admit.

    Attributes:
        request_id: drawn by the HTTP process, so that it can abort the request even if the response is lost.
        model: catalogue id, alias, repository or folder.
        params: what to generate.
    """

    model_config = ConfigDict(frozen=True)

    request_id: str
    model: str
    params: GenerationParams


def encode(event: Event) -> bytes:
    """Encode an event as one frame."""
    match event:
        case AudioChunk(samples, start):
            audio = np.ascontiguousarray(samples, dtype="<f4").tobytes()
            return _frame(b"C", _CHUNK_HEAD.pack(start, samples.shape[0]) + audio)
        case Queued():
            return _frame(b"W", json.dumps(asdict(event)).encode())
        case Started():
            return _frame(b"S", json.dumps(asdict(event)).encode())
        case Finished():
            return _frame(b"F", b"{}")
        case Failed(error):
            return _frame(b"X", json.dumps(error.to_dict()).encode())


class FrameDecoder:
    """Decodes events from a byte stream that arrives in parts of any size."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Event]:
        """Append `data` and yield the events that are complete now.

        Raises:
            ValueError: the bytes are not valid frames.
        """
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer)
            end = _HEAD.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            yield _decode(kind, payload)


def _frame(kind: bytes, payload: bytes) -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload


def _decode(kind: bytes, payload: bytes) -> Event:
    match kind:
        case b"C":
            start, channels = _CHUNK_HEAD.unpack_from(payload)
            samples = np.frombuffer(payload, dtype="<f4", offset=_CHUNK_HEAD.size).reshape(channels, -1)
            return AudioChunk(samples, start)
        case b"W":
            return Queued(**json.loads(payload))
        case b"S":
            return Started(**json.loads(payload))
        case b"F":
            return Finished()
        case b"X":
            return Failed(MusicGenError.from_dict(json.loads(payload)))
        case _:
            raise ValueError(f"unknown frame kind: {kind!r}")
