"""Schedules the decoding of tokens to audio: chunks of frames, small at first, batched across requests if allowed.

Batched decoding is faster: one chunk has few rows for a matrix product, and on a GPU it is hundreds of small kernels.
But with torch the last bits of a float may depend on the batch size. If output must be batch-invariant and the codec is
not, each request is decoded alone, in chunks of fixed sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from musicgen_bento.codec.decoder import CodecDecoder, CodecStream
from musicgen_bento.engine.token_sequence import TokenSequence
from musicgen_bento.engine.types import AudioChunk
from musicgen_bento.log import exception_location, logger

# Sizes of the first chunks of a request in frames: small ones, so that the first audio arrives soon.
FIRST_CHUNK_FRAMES = (5, 3, 4, 6, 9, 13, 18)
# Size of the later chunks in frames: twice the rows that the kernel's convolutions process at once with AVX-512.
CHUNK_FRAMES = 24
# Most audio channels in a batch. In the codec's last layers a chunk of one channel has 15,360 samples of 64 features.
MAX_BATCH_CHANNELS = 16


class AudioDecodeState:
    """The audio decoder's state of one request.

    Attributes:
        token_sequence: the request's tokens.
        stream: the codec's state of the request.
        finished: whether no further chunk follows.
    """

    def __init__(self, token_sequence: TokenSequence, stream: CodecStream, device: torch.device) -> None:
        self.token_sequence, self.stream = token_sequence, stream
        self.finished = False
        self._device = device
        self._chunks = 0
        self._frames = 0
        self._samples = 0

    def next_frames(self, tick: int | None) -> Tensor | None:
        """Return the tokens [K, t] of the next chunk; None if they are not complete yet.

        Once all tokens of the clip are known, a chunk may be shorter.

        Args:
            tick: count of the engine's steps. Requests with the same tick get their later chunks at the same step, so
                that these can be batched. None for a request that is decoded alone.
        """
        available = self.token_sequence.complete_frames - self._frames
        is_first = self._chunks < len(FIRST_CHUNK_FRAMES)
        size = FIRST_CHUNK_FRAMES[self._chunks] if is_first else CHUNK_FRAMES

        due = available >= size if tick is None or is_first else tick % CHUNK_FRAMES == 0
        size = min(size, available)
        if self.finished or size == 0 or not (due or self.token_sequence.done):
            return None
        begin = self._frames
        self._frames += size
        self._chunks += 1
        return torch.from_numpy(self.token_sequence.tokens[:, begin : self._frames]).to(self._device)

    def push(self, codes: Tensor) -> AudioChunk | None:
        """Decode the tokens [K, t] of a chunk of this request alone."""
        return self.to_chunk(self.stream.push(codes))

    def finish(self) -> AudioChunk | None:
        """Decode what the codec has buffered, at the end of the clip."""
        return self.to_chunk(self.stream.finish())

    def to_chunk(self, wav: Tensor | None) -> AudioChunk | None:
        """Turn the codec's next samples [C, n] into a chunk; None if there are no samples.

        Raises:
            FloatingPointError: a sample is NaN or infinite.
        """
        if wav is None or wav.shape[-1] == 0:
            return None
        samples = wav.cpu().numpy()
        if not np.isfinite(samples).all():
            raise FloatingPointError
        start = self._samples
        self._samples += samples.shape[1]
        return AudioChunk(samples, start)


ReadyChunk: TypeAlias = tuple[AudioDecodeState, Tensor]
"""A request, and the tokens [K, t] of its next chunk."""

Result: TypeAlias = tuple[AudioDecodeState, AudioChunk | Exception]
"""A request, and its next chunk or the error that ends it."""


class AudioDecodeScheduler:
    """Decodes the tokens of an engine's running requests to audio.

    Args:
        codec: the model's codec.
        device: the codec's device.
        batched: whether chunks of several requests may be decoded together.
    """

    def __init__(self, codec: CodecDecoder, device: torch.device, *, batched: bool) -> None:
        self._codec = codec
        self._device = device
        self._batched = batched
        self._tick = 0

    def create_state(self, token_sequence: TokenSequence) -> AudioDecodeState:
        """Create the state of a new request."""
        return AudioDecodeState(token_sequence, self._codec.open_stream(), self._device)

    def decode_ready(self, states: Sequence[AudioDecodeState]) -> Iterator[Result]:
        """Decode the chunks that are complete at this step, and the rest of the requests whose tokens are all known.

        Yields:
            A request and its next chunk. An exception instead of a chunk ends the request: its tokens could not be
            decoded, or its samples are not finite.
        """
        self._tick += 1
        tick = self._tick if self._batched and len(states) > 1 else None
        while ready := [(state, codes) for state in states if (codes := state.next_frames(tick)) is not None]:
            for batch in self._batches(ready):
                yield from self._decode_batch(batch)
        for state in states:
            if state.token_sequence.done and not state.finished:
                yield from _result(state, state.finish)
                state.finished = True

    def _batches(self, ready: list[ReadyChunk]) -> list[list[ReadyChunk]]:
        """Group the chunks that the codec decodes together: same shape, and codec streams in the same state."""
        if not self._batched:
            return [[chunk] for chunk in ready]
        groups: dict[Any, list[ReadyChunk]] = {}
        for state, codes in ready:
            groups.setdefault((codes.shape, state.stream.state_signature), []).append((state, codes))
        size = MAX_BATCH_CHANNELS // 2 if self._codec.stereo else MAX_BATCH_CHANNELS
        return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]

    def _decode_batch(self, batch: list[ReadyChunk]) -> Iterator[Result]:
        """Decode one chunk of each request.

        If a batch fails, its chunks are decoded one by one: the cause may be a lack of memory, or a single request.
        """
        if len(batch) > 1:
            try:
                wavs = self._codec.push([state.stream for state, _ in batch], [codes for _, codes in batch])
            except Exception as error:
                logger.warning("Batched audio decoding failed; decoding one by one: %s", exception_location(error))
            else:
                for (state, _), wav in zip(batch, wavs, strict=True):
                    yield from _result(state, partial(state.to_chunk, wav))
                return
        for state, codes in batch:
            yield from _result(state, partial(state.push, codes))


def _result(state: AudioDecodeState, get_chunk: Callable[[], AudioChunk | None]) -> Iterator[Result]:
    """Yield the chunk that `get_chunk` returns, or its exception."""
    try:
        chunk = get_chunk()
    except Exception as error:
        state.finished = True
        yield state, error
    else:
        if chunk is not None:
            yield state, chunk
