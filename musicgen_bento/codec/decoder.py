"""Tokens to samples, block by block, equal to decoding the whole clip at once.

EnCodec's decoder (SEANet: Défossez et al., "High Fidelity Neural Audio Compression", 2022, arXiv:2210.13438) is a
chain of convolutions around a causal LSTM. The convolutions look both ways, but only a little: three frames for the
first, 482 samples for the upsampling ones. So the first sound is there a few frames after the first tokens, every
value is computed once, a block costs its share of the whole, and nothing is heard at the seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.codec.layers import (
    StreamingLSTM,
    StreamingSequential,
    batch_states,
    state_signature,
    unbatch_states,
)
from musicgen_bento.codec.torch_ops import CodecOps, TorchOps


class CodecDecoder:
    """A codec, ready to decode many clips side by side.

    Args:
        codec: AudioCraft's compression model in eval mode, on its device.
        operations: that run it; by default torch's.

    Raises:
        TypeError: it is built in a way that cannot be decoded in blocks.
    """

    def __init__(self, codec: Any, operations: CodecOps | None = None) -> None:
        self.stereo = hasattr(codec, "get_left_right_codes")
        if self.stereo and codec.per_timestep:
            raise TypeError("no streaming form of codebooks interleaved in time")
        self.mono = codec.model if self.stereo else codec
        seanet = self.mono.model if hasattr(self.mono, "model") else self.mono
        if getattr(seanet, "renormalize", False) or getattr(getattr(seanet, "config", None), "chunk_length_s", None):
            raise TypeError("no streaming form of a codec that scales or cuts the whole clip")
        decoder = seanet.decoder
        layers = decoder.model if hasattr(decoder, "model") else decoder.layers
        operations = operations or TorchOps()
        self.chain = StreamingSequential(layers, operations)
        recurrent = [index for index, layer in enumerate(self.chain.layers) if isinstance(layer, StreamingLSTM)]
        # how many of the layers several clips go through together
        self._shared = len(self.chain.layers) if operations.batch_all_layers else max(recurrent, default=-1) + 1

    def open_stream(self) -> CodecStream:
        """Begin a clip."""
        return CodecStream(self)

    @torch.inference_mode()
    def push(self, streams: Sequence[CodecStream], codes: Sequence[Tensor]) -> list[Tensor | None]:
        """The next frames of several clips in the same state (see `CodecStream.state`), decoded together.

        Args:
            streams: B of them.
            codes: of each [K, t], as many frames of all.

        Returns:
            The samples of each [C, n]; None while the look-ahead fills.
        """
        batch, count = torch.stack(list(codes)), len(streams)
        if self.stereo:  # even codebooks are left, odd ones right: two items of a batch
            batch = batch.view(count, -1, 2, batch.shape[2]).transpose(1, 2).flatten(0, 1)
        x = self.mono.decode_latent(batch).transpose(1, 2)
        wavs = [streams[0].chain.push(x)] if count == 1 else self._together(streams, x)
        # copies: whoever keeps one clip's samples shall not keep those of all
        return [None if wav is None else _channels(wav).clone() for wav in wavs]

    def _together(self, streams: Sequence[CodecStream], x: Tensor) -> list[Tensor | None]:
        """What each clip's part of x [B, n, C] adds, [C, n, 1]."""
        heads = [stream.chain.of(stream.chain.layers[: self._shared]) for stream in streams]
        tails = [stream.chain.of(stream.chain.layers[self._shared :]) for stream in streams]
        head = batch_states(heads)
        y = head.push(x)
        parts = [None] * len(streams) if y is None else y.chunk(len(streams))
        made = []
        for own, tail, part in zip(unbatch_states(head, len(streams)), tails, parts, strict=True):
            tail = batch_states([tail])  # a copy: whoever fails leaves the streams as they were
            made.append((own.layers + tail.layers, tail.push(part) if tail.layers and part is not None else part))
        for stream, (layers, _) in zip(streams, made, strict=True):
            stream.chain = stream.chain.of(layers)
        return [wav for _, wav in made]


class CodecStream:
    """One clip's way through the codec.

    Attributes:
        chain: the layers, with what they keep of this clip.
    """

    def __init__(self, decoder: CodecDecoder) -> None:
        self._decoder = decoder
        self.chain = decoder.chain.fork()

    @property
    def state_signature(self) -> Any:
        """Clips of one codec can be decoded together while theirs are equal: a few frames after their beginnings."""
        return state_signature(self.chain)

    def push(self, codes: Tensor) -> Tensor | None:
        """The next frames, [K, t] → samples [C, n]; None while the look-ahead fills."""
        return self._decoder.push([self], [codes])[0]

    @torch.inference_mode()
    def finish(self) -> Tensor | None:
        """The samples that waited for frames to come, [C, n]."""
        wav = self.chain.finish()
        return None if wav is None else _channels(wav)


def _channels(wav: Tensor) -> Tensor:
    """[C, n, 1] → [C, n]."""
    return wav.reshape(-1, wav.shape[1])
