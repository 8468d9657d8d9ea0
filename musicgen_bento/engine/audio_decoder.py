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
from musicgen_bento.engine.token_sequence import Clip
from musicgen_bento.engine.types import Chunk
from musicgen_bento.log import where

# Frames to decode at a time: little first, so that sound comes soon, then blocks large enough to be cheap.
BLOCKS = (5, 3, 4, 6, 9, 13, 18)
BLOCK = 24  # twice as many rows as the kernel's convolutions take at once, with AVX-512
TOGETHER = 16  # channels of sound at most: at the codec's end a block of each is 15,360 samples of 64 channels

_log = logging.getLogger("bentoml.musicgen")


class ClipSound:
    """A clip's way from tokens to chunks.

    Attributes:
        clip: its tokens.
        stream: its way through the codec.
        over: nothing more can be heard of it.
    """

    def __init__(self, clip: Clip, stream: CodecStream, device: torch.device) -> None:
        self.clip, self.stream = clip, stream
        self.over = False
        self._device = device
        self._blocks = 0
        self._frames = 0
        self._samples = 0

    def take(self, tick: int | None) -> Tensor | None:
        """The tokens of the next block [K, t], if its frames are complete; what is left, once the clip is done.

        Args:
            tick: of the engine's steps. Clips that are told it take their later blocks at the same ones. None for a
                clip that is alone.
        """
        ahead = self.clip.complete_frames - self._frames
        first = self._blocks < len(BLOCKS)
        if tick is None or first:
            size = BLOCKS[self._blocks] if first else BLOCK
            due = ahead >= size
        else:
            size, due = BLOCK, tick % BLOCK == 0
        size = min(size, ahead)
        if self.over or size == 0 or not (due or self.clip.done):
            return None
        begin, self._frames, self._blocks = self._frames, self._frames + size, self._blocks + 1
        return torch.from_numpy(self.clip.tokens[:, begin : self._frames]).to(self._device)

    def push(self, codes: Tensor) -> Chunk | None:
        """What a block [K, t] adds, decoded alone."""
        return self.chunk(self.stream.push(codes))

    def finish(self) -> Chunk | None:
        """What is left in the codec at the end."""
        return self.chunk(self.stream.finish())

    def chunk(self, wav: Tensor | None) -> Chunk | None:
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
        return Chunk(samples, begin)


Block: TypeAlias = tuple[ClipSound, Tensor]
"""A clip, and the tokens of its next block [K, t]."""


class Sounds:
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

    def open(self, clip: Clip) -> ClipSound:
        """Begin a clip."""
        return ClipSound(clip, self._codec.open(), self._device)

    def heard(self, sounds: Sequence[ClipSound]) -> Iterator[tuple[ClipSound, Chunk | Exception]]:
        """What can be heard that could not be a step before; all of the rest of the clips that are done.

        An exception instead of a chunk is the last that is heard of a clip: it could not be decoded, or is not finite.
        """
        self._tick += 1
        tick = None if self._alone or len(sounds) == 1 else self._tick
        while blocks := [(sound, codes) for sound in sounds if (codes := sound.take(tick)) is not None]:
            for company in self._companies(blocks):
                yield from self._decoded(company)
        for sound in sounds:
            if sound.clip.done and not sound.over:
                yield from _given(sound, sound.finish)
                sound.over = True

    def _companies(self, blocks: list[Block]) -> list[list[Block]]:
        """The blocks that go through the codec together: of clips in the same state."""
        if self._alone:
            return [[block] for block in blocks]
        found: dict[Any, list[Block]] = {}
        for sound, codes in blocks:
            found.setdefault((codes.shape, sound.stream.state), []).append((sound, codes))
        size = TOGETHER // 2 if self._codec.stereo else TOGETHER
        return [same[i : i + size] for same in found.values() for i in range(0, len(same), size)]

    def _decoded(self, company: list[Block]) -> Iterator[tuple[ClipSound, Chunk | Exception]]:
        """A block of each. What fails together is tried alone: it may be memory, or one of them."""
        if len(company) > 1:
            try:
                wavs = self._codec.push([sound.stream for sound, _ in company], [codes for _, codes in company])
            except Exception as error:
                _log.warning("Clips could not be decoded together: %s", where(error))
            else:
                for (sound, _), wav in zip(company, wavs, strict=True):
                    yield from _given(sound, partial(sound.chunk, wav))
                return
        for sound, codes in company:
            yield from _given(sound, partial(sound.push, codes))


def _given(sound: ClipSound, chunk_of: Callable[[], Chunk | None]) -> Iterator[tuple[ClipSound, Chunk | Exception]]:
    """A clip's next chunk, or why there will be none."""
    try:
        chunk = chunk_of()
    except Exception as error:
        sound.over = True
        yield sound, error
    else:
        if chunk is not None:
            yield sound, chunk
