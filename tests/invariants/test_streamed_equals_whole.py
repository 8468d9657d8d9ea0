"""Invariant 4. Streamed audio equals the whole clip.

Before normalization the difference is at most 1e-5 for any split into chunks; over HTTP it is at most 1 LSB.
"""

from __future__ import annotations

from functools import cache
from itertools import accumulate, count, pairwise
from typing import Any

import numpy as np
import pytest
import requests
import torch
from audiocraft.models.encodec import HFEncodecCompressionModel, InterleaveStereoCompressionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EncodecConfig, EncodecModel

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.resolve import resolve_model
from musicgen_bento.codec.decoder import CodecDecoder
from musicgen_bento.codec.layer_state import ConvTranspose1dState
from musicgen_bento.codec.layers import StreamingConvTranspose1d, StreamingLSTM
from musicgen_bento.codec.native_ops import create_ops
from musicgen_bento.engine.audio_decoder import CHUNK_FRAMES, FIRST_CHUNK_FRAMES, AudioDecodeScheduler
from musicgen_bento.native.bindings import ThreadPool
from musicgen_bento.precision import FLOAT32
from tests.support.server import Server
from tests.support.tiny_models import MONO, load

# A codec of every kind that can be decoded in chunks.
KINDS = ["audiocraft", "audiocraft stereo", "hugging face", "hugging face stereo"]

each_backend = pytest.mark.parametrize("backend", ["kernel", "torch"])


@cache
def codec_of(kind: str) -> Any:
    if kind == "demo":
        return loading.build(loading.open_files(resolve_model("demo")), torch.device("cpu"), FLOAT32).codec
    if kind.startswith("audiocraft"):
        model = load(MONO).codec
    else:
        model = HFEncodecCompressionModel(EncodecModel(hugging_face_32khz()))
    lengthen_lstm_memory(model)
    return InterleaveStereoCompressionModel(model).eval() if kind.endswith("stereo") else model.eval()


def hugging_face_32khz() -> EncodecConfig:
    """Return the configuration of facebook/encodec_32khz, with fewer filters."""
    return EncodecConfig(
        target_bandwidths=[2.2],
        sampling_rate=32_000,
        audio_channels=1,
        normalize=False,
        num_filters=4,
        upsampling_ratios=[8, 5, 4, 4],
        norm_type="weight_norm",
        codebook_size=2048,
        use_causal_conv=False,
        use_conv_shortcut=False,
        pad_mode="reflect",
    )


def lengthen_lstm_memory(model: Any) -> None:
    """Set the forget gates' biases to 3, so that a lost LSTM state shows. A random LSTM forgets within a few steps."""
    for module in model.modules():
        if isinstance(module, torch.nn.LSTM):
            for name, bias in module.named_parameters():
                if name.startswith("bias_ih"):
                    bias.data[module.hidden_size : 2 * module.hidden_size] = 3.0
        if hasattr(module, "embed") and not module.embed.any():
            module.embed.data.normal_()


@cache
def decoder_of(kind: str, backend: str) -> CodecDecoder:
    """Return the streaming decoder, with its operations in the C kernel or in torch."""
    return CodecDecoder(codec_of(kind), create_ops(ThreadPool(2) if backend == "kernel" else None))


def decode_whole(kind: str, codes: torch.Tensor) -> torch.Tensor:
    """Decode all frames [K, t] at once with the original codec."""
    with torch.no_grad():
        wav: torch.Tensor = codec_of(kind).decode(codes[None], None)[0]
    return wav


def decode_streamed(kind: str, codes: torch.Tensor, cuts: list[int], backend: str) -> torch.Tensor:
    """Decode the frames [K, t] in chunks that begin at the cuts."""
    stream = decoder_of(kind, backend).open_stream()
    edges = sorted({0, codes.shape[1], *(cut for cut in cuts if cut < codes.shape[1])})
    return join(*(stream.push(codes[:, begin:end]) for begin, end in pairwise(edges)), stream.finish())


def join(*wavs: torch.Tensor | None) -> torch.Tensor:
    """Concatenate chunks of samples [C, n]."""
    return torch.cat([wav for wav in wavs if wav is not None], dim=1)


@each_backend
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 60), cuts=st.lists(st.integers(1, 59), max_size=60), seed=st.integers(0, 99))
def test_any_chunking_gives_the_samples_of_the_whole(
    kind: str, backend: str, frames: int, cuts: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2048, (codec_of(kind).num_codebooks, frames), generator=generator)
    streamed = decode_streamed(kind, codes, cuts, backend)
    torch.testing.assert_close(streamed, decode_whole(kind, codes), atol=1e-5, rtol=0)
    if backend == "kernel" and frames > 10:  # torch may decode a shorter clip whole
        assert torch.equal(streamed, decode_streamed(kind, codes, [7], backend))


@each_backend
def test_a_trained_codec_streams_the_samples_of_the_whole(backend: str) -> None:
    """The codec of the built-in model. In the kernel its LSTM has 16-bit weights."""
    codec = codec_of("demo")
    codes = torch.randint(0, codec.cardinality, (codec.num_codebooks, 500), generator=torch.Generator().manual_seed(5))
    streamed = decode_streamed("demo", codes, list(range(20, 500, 20)), backend)
    expected = decode_whole("demo", codes)
    assert expected.std() > 0.05
    torch.testing.assert_close(streamed, expected, atol=1e-5, rtol=0)


@each_backend
@pytest.mark.parametrize("kind", KINDS)
def test_the_engines_chunks_give_the_samples_of_the_whole(kind: str, backend: str) -> None:
    codes = torch.randint(0, 2048, (codec_of(kind).num_codebooks, 100))
    cuts = [*accumulate(FIRST_CHUNK_FRAMES), *range(sum(FIRST_CHUNK_FRAMES) + CHUNK_FRAMES, 100, CHUNK_FRAMES)]
    streamed = decode_streamed(kind, codes, cuts, backend)
    torch.testing.assert_close(streamed, decode_whole(kind, codes), atol=1e-5, rtol=0)


@each_backend
def test_a_lost_lstm_state_changes_the_samples(backend: str) -> None:
    """The tests above detect a lost state."""
    codes = torch.randint(0, 2048, (4, 60))
    decoder = decoder_of("audiocraft", backend)
    stream = decoder.open_stream()
    first = stream.push(codes[:, :30])
    [index] = [i for i, layer in enumerate(decoder.decoder.layers) if isinstance(layer, StreamingLSTM)]
    stream.state.layers[index] = decoder.decoder.layers[index].initial_state()
    wav = join(first, stream.push(codes[:, 30:]), stream.finish())
    assert (wav - decode_whole("audiocraft", codes)).abs().max() > 1e-4


@each_backend
def test_interleaved_streams_are_independent(backend: str) -> None:
    decoder = decoder_of("audiocraft", backend)
    codes = [torch.randint(0, 2048, (4, 40)) for _ in range(2)]
    streams = [decoder.open_stream() for _ in codes]
    wavs: list[list[torch.Tensor | None]] = [[], []]
    for begin in range(0, 40, 10):
        for stream, parts, code in zip(streams, wavs, codes, strict=True):
            parts.append(stream.push(code[:, begin : begin + 10]))
    for stream, parts, code in zip(streams, wavs, codes, strict=True):
        parts.append(stream.finish())
        torch.testing.assert_close(join(*parts), decode_whole("audiocraft", code), atol=1e-5, rtol=0)


@each_backend
@pytest.mark.parametrize("kind", KINDS)
def test_batched_streams_give_the_samples_of_the_whole(kind: str, backend: str) -> None:
    """Two streams share some batches. The third begins later; its first chunk cannot be batched."""
    decoder = decoder_of(kind, backend)
    codes = [torch.randint(0, 2048, (codec_of(kind).num_codebooks, 60)) for _ in range(3)]
    streams, wavs = [decoder.open_stream() for _ in codes], [[] for _ in codes]
    wavs[0].append(streams[0].push(codes[0][:, :20]))
    wavs[1].append(decoder.push(streams[1:2], [codes[1][:, :20]])[0])
    assert streams[0].state_signature == streams[1].state_signature != streams[2].state_signature
    for begin in (20, 25):
        batch = decoder.push(streams[:2], [code[:, begin : begin + 5] for code in codes[:2]])
        for parts, wav in zip(wavs, batch, strict=False):
            parts.append(wav)
    wavs[2].append(streams[2].push(codes[2][:, :30]))
    assert streams[0].state_signature == streams[2].state_signature
    for parts, wav in zip(wavs, decoder.push(streams, [code[:, 30:] for code in codes]), strict=True):
        parts.append(wav)
    for code, parts, stream in zip(codes, wavs, streams, strict=True):
        streamed = join(*parts, stream.finish())
        torch.testing.assert_close(streamed, decode_whole(kind, code), atol=1e-5, rtol=0)
        if backend == "kernel":
            assert torch.equal(streamed, decode_streamed(kind, code, [], backend))  # the bits of one chunk, alone


@each_backend
def test_a_failed_batch_leaves_its_streams_unchanged(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch fails in the last layers of its second stream; then each stream is decoded alone."""
    decoder = decoder_of("audiocraft", backend)
    codes = [torch.randint(0, 2048, (4, 40)) for _ in range(2)]
    streams, wavs = [decoder.open_stream() for _ in codes], [[] for _ in codes]
    for parts, wav in zip(wavs, decoder.push(streams, [code[:, :20] for code in codes]), strict=True):
        parts.append(wav)
    original_push, calls = StreamingConvTranspose1d.push, count(1)
    with monkeypatch.context() as patch:

        def failing_push(self: StreamingConvTranspose1d, x: torch.Tensor, state: ConvTranspose1dState) -> torch.Tensor:
            y = original_push(self, x, state)
            if next(calls) == (8 if backend == "kernel" else 4):
                raise MemoryError
            return y

        patch.setattr(StreamingConvTranspose1d, "push", failing_push)
        with pytest.raises(MemoryError):
            decoder.push(streams, [code[:, 20:] for code in codes])
    for stream, parts, code in zip(streams, wavs, codes, strict=True):
        parts += [stream.push(code[:, 20:]), stream.finish()]
        torch.testing.assert_close(join(*parts), decode_whole("audiocraft", code), atol=1e-5, rtol=0)


class FakeTokenSequence:
    """The part of `TokenSequence` that the audio decoder reads. The test completes one frame per step."""

    def __init__(self, frames: int) -> None:
        self.tokens = np.random.default_rng(frames).integers(0, 2048, (4, frames))
        self.complete_frames = 0

    @property
    def done(self) -> bool:
        return self.complete_frames == self.tokens.shape[1]


@each_backend
@pytest.mark.parametrize("batched", [False, True])
def test_requests_that_start_at_any_step_are_decoded_completely(
    batched: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio_decoder = AudioDecodeScheduler(decoder_of("audiocraft", backend), torch.device("cpu"), batched=batched)
    batch_sizes: list[int] = []
    push = CodecDecoder.push
    monkeypatch.setattr(CodecDecoder, "push", lambda self, s, c: batch_sizes.append(len(s)) or push(self, s, c))
    frames_by_first_step = {0: 130, 3: 201, 4: 7, 11: 160, 30: 180}
    chunks_of: dict[Any, list[Any]] = {}
    for step in range(260):
        if step in frames_by_first_step:
            chunks_of[audio_decoder.create_state(FakeTokenSequence(frames_by_first_step[step]))] = []
        for request in chunks_of:
            request.token_sequence.complete_frames += not request.token_sequence.done
        for request, chunk in audio_decoder.decode_ready([r for r in chunks_of if not r.finished]):
            chunks_of[request].append(chunk)
    for request, chunks in chunks_of.items():
        assert request.finished
        assert [chunk.start for chunk in chunks] == [0, *accumulate(c.samples.shape[1] for c in chunks)][:-1]
        audio = np.concatenate([chunk.samples for chunk in chunks], axis=1)
        expected = decode_whole("audiocraft", torch.from_numpy(request.token_sequence.tokens)).numpy()
        assert np.abs(audio - expected).max() < 1e-5
    assert max(batch_sizes) == (4 if batched else 1)


@pytest.mark.parametrize("normalize", ["clip", "none"])
@pytest.mark.parametrize("duration", [0.1, 0.5, 8.0, 35.0])
def test_stream_responses_equal_generate_responses(server: Server, duration: float, normalize: str) -> None:
    """In 16 bits, with the model demo. 35 s is longer than the model's window."""
    body = {"prompt": "calm", "duration": duration, "seed": 4, "normalize": normalize}
    whole = server.generate(**body)
    assert np.abs(pcm_samples(whole.content)).max() < 32_767  # so that `none` and `clip` give the same samples
    stream = requests.post(f"{server.url}/stream", json=body, timeout=120)
    pcm = requests.post(f"{server.url}/stream", json={**body, "format": "pcm"}, timeout=120)
    assert stream.content[:44] == whole.content[:44]
    assert len(stream.content) == len(whole.content) == int(stream.headers["content-length"])
    assert np.abs(pcm_samples(stream.content) - pcm_samples(whole.content)).max() <= 1
    assert np.abs(pcm_samples(b"\0" * 44 + pcm.content) - pcm_samples(whole.content)).max() <= 1
    assert np.abs(pcm_samples(whole.content)).max() > 0
    names = ("x-seed", "x-model", "x-audio-sample-rate", "x-audio-channels", "x-audio-duration")
    assert [stream.headers[name] for name in names] == [whole.headers[name] for name in names]


def pcm_samples(wav: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the samples of a 16-bit WAV file with a header of 44 bytes."""
    return np.frombuffer(wav[44:], "<i2").astype(np.int64)
