"""Tokens to samples, block by block, equal to decoding the whole clip at once.

EnCodec's decoder (SEANet: Défossez et al., "High Fidelity Neural Audio Compression", 2022, arXiv:2210.13438) is a
chain of convolutions around a causal LSTM. The convolutions look both ways, but only a little: three frames for the
first, 482 samples for the upsampling ones. So the first sound is there a few frames after the first tokens, every
value is computed once, a block costs its share of the whole, and nothing is heard at the seams.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.engine.clip import Clip
from musicgen_bento.engine.seanet import Chain
from musicgen_bento.engine.types import Chunk

# Frames to decode at a time: little first, so that sound comes soon, then blocks large enough to be cheap.
# Fixed, so that a clip's arithmetic, and every bit of it, is the same however its frames arrive.
BLOCKS = (5, 3, 4, 6, 9, 13, 20)


class CodecDecoder:
    """A codec, ready to decode many clips side by side.

    Args:
        codec: AudioCraft's compression model in eval mode, on its device.

    Raises:
        TypeError: it is built in a way that cannot be decoded in blocks.
    """

    def __init__(self, codec: Any) -> None:
        self.stereo = hasattr(codec, "get_left_right_codes")
        if self.stereo and codec.per_timestep:
            raise TypeError("no streaming form of codebooks interleaved in time")
        self.mono = codec.model if self.stereo else codec
        seanet = self.mono.model if hasattr(self.mono, "model") else self.mono
        if getattr(seanet, "renormalize", False) or getattr(getattr(seanet, "config", None), "chunk_length_s", None):
            raise TypeError("no streaming form of a codec that scales or cuts the whole clip")
        decoder = seanet.decoder
        self.chain = Chain(decoder.model if hasattr(decoder, "model") else decoder.layers)

    def open(self) -> CodecStream:
        """Begin a clip."""
        return CodecStream(self)


class CodecStream:
    """One clip's way through the codec."""

    def __init__(self, decoder: CodecDecoder) -> None:
        self._decoder = decoder
        self._chain = decoder.chain.fork()

    @torch.inference_mode()
    def push(self, codes: Tensor) -> Tensor | None:
        """The next frames, [K, t] → samples [C, n]; None while the look-ahead fills."""
        batch = codes[None]
        if self._decoder.stereo:  # even codebooks are left, odd ones right: two items of a batch
            batch = codes.view(-1, 2, codes.shape[1]).transpose(0, 1)
        return self._channels(self._chain.push(self._decoder.mono.decode_latent(batch)))

    @torch.inference_mode()
    def finish(self) -> Tensor | None:
        """The samples that waited for frames to come, [C, n]."""
        return self._channels(self._chain.finish())

    def _channels(self, wav: Tensor | None) -> Tensor | None:
        """[1 or 2, 1, n] → [C, n]."""
        return None if wav is None else wav.reshape(-1, wav.shape[-1])


class ClipSound:
    """A clip's tokens as chunks, in blocks of the schedule, as soon as their frames are complete."""

    def __init__(self, stream: CodecStream, device: torch.device) -> None:
        self._stream = stream
        self._device = device
        self._blocks = 0
        self._frames = 0
        self._samples = 0

    def chunks(self, clip: Clip) -> Iterator[Chunk]:
        """What can be heard now that could not before; all of the rest once the clip is done.

        Raises:
            FloatingPointError: the codec gave NaN or infinity.
        """
        while (ahead := clip.complete_frames - self._frames) > 0:
            size = BLOCKS[min(self._blocks, len(BLOCKS) - 1)]
            if ahead < size and not clip.done:
                return
            end = self._frames + min(size, ahead)
            codes = torch.from_numpy(clip.tokens[:, self._frames : end]).to(self._device)
            yield from self._chunk(self._stream.push(codes))
            self._frames, self._blocks = end, self._blocks + 1
        if clip.done:
            yield from self._chunk(self._stream.finish())

    def _chunk(self, wav: Tensor | None) -> Iterator[Chunk]:
        if wav is None or wav.shape[-1] == 0:
            return
        if not bool(wav.isfinite().all()):
            raise FloatingPointError
        samples = wav.cpu().numpy()
        yield Chunk(samples, self._samples)
        self._samples += samples.shape[1]
