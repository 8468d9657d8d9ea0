"""When clips' tokens become sound: in blocks, small at first, and those of several clips together where they may.

Together is faster: a block has few rows for a product, and on a GPU it is hundreds of small kernels. But a float's last
bits may depend on the size of its batch, where torch decodes. So where a seed promises the same bytes in any company,
and the codec does not keep that by itself, a clip is decoded alone, in blocks that are always the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from musicgen_bento.codec.decoder import CodecDecoder, CodecStream
from musicgen_bento.engine.token_sequence import TokenSequence
from musicgen_bento.engine.types import AudioChunk
from musicgen_bento.log import exception_location

# Frames to decode at a time: little first, so that sound comes soon, then blocks large enough to be cheap.
FIRST_CHUNK_FRAMES = (5, 3, 4, 6, 9, 13, 18)
CHUNK_FRAMES = 24  # twice as many rows as the kernel's convolutions take at once, with AVX-512
MAX_BATCH_CHANNELS = (
    16  # channels of sound at most: at the codec's end a block of each is 15,360 samples of 64 channels
)

_log = logging.getLogger("bentoml.musicgen")


class AudioDecodeState:
    """A clip's way from tokens to chunks.

    Attributes:
        clip: its tokens.
        stream: its way through the codec.
        over: nothing more can be heard of it.
    """

    def __init__(self, clip: TokenSequence, stream: CodecStream, device: torch.device) -> None:
        self.tokens, self.stream = clip, stream
        self.finished = False
        self._device = device
        self._blocks = 0
        self._frames = 0
        self._samples = 0

    def next_frames(self, tick: int | None) -> Tensor | None:
        """The tokens of the next block [K, t], if its frames are complete; what is left, once the clip is done.

        Args:
            tick: of the engine's steps. Clips that are told it take their later blocks at the same ones. None for a
                clip that is alone.
        """
        ahead = self.tokens.complete_frames - self._frames
        first = self._blocks < len(FIRST_CHUNK_FRAMES)
        if tick is None or first:
            size = FIRST_CHUNK_FRAMES[self._blocks] if first else CHUNK_FRAMES
            due = ahead >= size
        else:
            size, due = CHUNK_FRAMES, tick % CHUNK_FRAMES == 0
        size = min(size, ahead)
        if self.finished or size == 0 or not (due or self.tokens.done):
            return None
        begin, self._frames, self._blocks = self._frames, self._frames + size, self._blocks + 1
        return torch.from_numpy(self.tokens.tokens[:, begin : self._frames]).to(self._device)

    def push(self, codes: Tensor) -> AudioChunk | None:
        """What a block [K, t] adds, decoded alone."""
        return self.chunk(self.stream.push(codes))

    def finish(self) -> AudioChunk | None:
        """What is left in the codec at the end."""
        return self.chunk(self.stream.finish())

    def chunk(self, wav: Tensor | None) -> AudioChunk | None:
        """What the codec made next [C, n], for the listener; None if that is nothing.

        Raises:
            FloatingPointError: it is NaN or infinity.
        """
        if wav is None or wav.shape[-1] == 0:
            return None
        samples = wav.cpu().numpy()
        if not np.isfinite(samples).all():
            raise FloatingPointError
        begin, self._samples = self._samples, self._samples + samples.shape[1]
        return AudioChunk(samples, begin)


Block: TypeAlias = tuple[AudioDecodeState, Tensor]
"""A clip, and the tokens of its next block [K, t]."""


class AudioDecodeScheduler:
    """The sound of an engine's clips.

    Args:
        codec: of the model.
        device: where it is.
        alone: whether each clip is decoded alone, also where there are others.
    """

    def __init__(self, codec: CodecDecoder, device: torch.device, *, alone: bool) -> None:
        self._codec = codec
        self._device = device
        self._alone = alone
        self._tick = 0

    def open(self, clip: TokenSequence) -> AudioDecodeState:
        """Begin a clip."""
        return AudioDecodeState(clip, self._codec.open_stream(), self._device)

    def decode_ready(
        self, sounds: Sequence[AudioDecodeState]
    ) -> Iterator[tuple[AudioDecodeState, AudioChunk | Exception]]:
        """What can be heard that could not be a step before; all of the rest of the clips that are done.

        An exception instead of a chunk is the last that is heard of a clip: it could not be decoded, or is not finite.
        """
        self._tick += 1
        tick = None if self._alone or len(sounds) == 1 else self._tick
        while blocks := [(sound, codes) for sound in sounds if (codes := sound.next_frames(tick)) is not None]:
            for company in self._companies(blocks):
                yield from self._decoded(company)
        for sound in sounds:
            if sound.tokens.done and not sound.finished:
                yield from _given(sound, sound.finish)
                sound.finished = True

    def _companies(self, blocks: list[Block]) -> list[list[Block]]:
        """The blocks that go through the codec together: of clips in the same state."""
        if self._alone:
            return [[block] for block in blocks]
        found: dict[Any, list[Block]] = {}
        for sound, codes in blocks:
            found.setdefault((codes.shape, sound.stream.state_signature), []).append((sound, codes))
        size = MAX_BATCH_CHANNELS // 2 if self._codec.stereo else MAX_BATCH_CHANNELS
        return [same[i : i + size] for same in found.values() for i in range(0, len(same), size)]

    def _decoded(self, company: list[Block]) -> Iterator[tuple[AudioDecodeState, AudioChunk | Exception]]:
        """A block of each. What fails together is tried alone: it may be memory, or one of them."""
        if len(company) > 1:
            try:
                wavs = self._codec.push([sound.stream for sound, _ in company], [codes for _, codes in company])
            except Exception as error:
                _log.warning("Clips could not be decoded together: %s", exception_location(error))
            else:
                for (sound, _), wav in zip(company, wavs, strict=True):
                    yield from _given(sound, partial(sound.chunk, wav))
                return
        for sound, codes in company:
            yield from _given(sound, partial(sound.push, codes))


def _given(
    sound: AudioDecodeState, chunk_of: Callable[[], AudioChunk | None]
) -> Iterator[tuple[AudioDecodeState, AudioChunk | Exception]]:
    """A clip's next chunk, or why there will be none."""
    try:
        chunk = chunk_of()
    except Exception as error:
        sound.finished = True
        yield sound, error
    else:
        if chunk is not None:
            yield sound, chunk
