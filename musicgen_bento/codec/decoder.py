"""Decodes tokens to samples in chunks; the result equals decoding the whole clip at once.

EnCodec's decoder (SEANet: Défossez et al., "High Fidelity Neural Audio Compression", 2022, arXiv:2210.13438) is a
chain of convolutions around a causal LSTM. A convolution depends on a few inputs before and after each position: three
frames in the first, 482 samples in the upsampling ones. So the first samples are available a few frames after the first
tokens. Each value is computed once, the cost of a chunk is proportional to its length, and no seam is audible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from musicgen_bento.codec.composite_layers import StreamingSequential, push_through
from musicgen_bento.codec.layer_state import LayerState, SequentialState
from musicgen_bento.codec.layers import StreamingLSTM
from musicgen_bento.codec.torch_ops import CodecOps, TorchOps


class CodecDecoder:
    """A codec that decodes many streams, alone or in batches.

    Args:
        codec: AudioCraft's compression model in eval mode, on its device.
        ops: the operations of the layers; torch's by default.

    Attributes:
        stereo: whether the codec decodes left and right as two batch rows.
        decoder: the streaming layers.

    Raises:
        TypeError: the codec has a part that cannot decode in chunks.
    """

    def __init__(self, codec: Any, ops: CodecOps | None = None) -> None:
        self.stereo = hasattr(codec, "get_left_right_codes")
        if self.stereo and codec.per_timestep:
            raise TypeError("Codebooks interleaved in time have no streaming form.")
        self._mono_codec = codec.model if self.stereo else codec
        seanet = self._mono_codec.model if hasattr(self._mono_codec, "model") else self._mono_codec
        if getattr(seanet, "renormalize", False) or getattr(getattr(seanet, "config", None), "chunk_length_s", None):
            raise TypeError("A codec that scales or splits the whole clip has no streaming form.")
        modules = seanet.decoder.model if hasattr(seanet.decoder, "model") else seanet.decoder.layers
        ops = ops or TorchOps()
        self.decoder = StreamingSequential(modules, ops)
        lstm_indices = [i for i, layer in enumerate(self.decoder.layers) if isinstance(layer, StreamingLSTM)]
        # Layers that run for a batch of streams; the layers behind them run stream by stream (see CodecOps).
        self._num_batched = len(self.decoder.layers) if ops.batch_all_layers else max(lstm_indices, default=-1) + 1

    def open_stream(self) -> CodecStream:
        """Return a new stream."""
        return CodecStream(self)

    @torch.inference_mode()
    def push(self, streams: Sequence[CodecStream], codes: Sequence[Tensor]) -> list[Tensor | None]:
        """Decode the next frames of several streams with equal `CodecStream.state_signature`.

        Args:
            streams: B streams. If a batch of two or more fails, they stay as they were.
            codes: tokens of each stream [K, t], of the same number of frames.

        Returns:
            Samples of each stream [C, n]; None while the look-ahead is not filled.
        """
        batch, count = torch.stack(list(codes)), len(streams)
        if self.stereo:  # even codebooks are left, odd ones right: two batch rows
            batch = batch.view(count, -1, 2, batch.shape[2]).transpose(1, 2).flatten(0, 1)
        x = self._mono_codec.decode_latent(batch).transpose(1, 2)
        wavs = [self.decoder.push(x, streams[0].state)] if count == 1 else self._push_batch(streams, x)
        # copies: a view of one stream's samples would keep those of the whole batch in memory
        return [None if wav is None else _by_channel(wav).clone() for wav in wavs]

    def _push_batch(self, streams: Sequence[CodecStream], x: Tensor) -> list[Tensor | None]:
        """Decode latents x [B, n, C] of two or more streams; return the samples of each, [1 or 2, n, 1]."""
        count, split = len(streams), self._num_batched
        batch_state = SequentialState.batch([SequentialState(stream.state.layers[:split]) for stream in streams])
        y = push_through(self.decoder.layers[:split], x, batch_state.layers)
        parts = [None] * count if y is None else y.chunk(count)
        new_states: list[list[LayerState]] = []
        wavs = []
        for stream, state, part in zip(streams, batch_state.unbatch(count), parts, strict=True):
            # a copy: a failure must leave the streams as they were
            own_state = SequentialState.batch([SequentialState(stream.state.layers[split:])])
            wavs.append(push_through(self.decoder.layers[split:], part, own_state.layers))
            new_states.append(state.layers + own_state.layers)
        for stream, layers in zip(streams, new_states, strict=True):
            stream.state = SequentialState(layers)
        return wavs

    @torch.inference_mode()
    def finish(self, stream: CodecStream) -> Tensor | None:
        """Return a stream's last samples [C, n], which were waiting for later frames; None if there are none."""
        wav = self.decoder.finish(stream.state)
        return None if wav is None else _by_channel(wav)


class CodecStream:
    """The codec's state of one request.

    Attributes:
        state: what the streaming layers keep between chunks.
    """

    def __init__(self, decoder: CodecDecoder) -> None:
        self._decoder = decoder
        self.state = decoder.decoder.initial_state()

    @property
    def state_signature(self) -> tuple[Any, ...]:
        """Equal for streams that can be decoded in one batch: those of one codec, a few frames after they begin."""
        return self.state.signature

    def push(self, codes: Tensor) -> Tensor | None:
        """Decode the next frames: tokens [K, t] → samples [C, n]; None while the look-ahead is not filled."""
        return self._decoder.push([self], [codes])[0]

    def finish(self) -> Tensor | None:
        """Return the last samples [C, n], which were waiting for later frames; None if there are none."""
        return self._decoder.finish(self)


def _by_channel(wav: Tensor) -> Tensor:
    """[C, n, 1] → [C, n]."""
    return wav.reshape(-1, wav.shape[1])
