"""Law 4. Streamed equals whole: to 1e-5 before normalisation, however the frames are cut; to 1 LSB over HTTP."""

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
from musicgen_bento.codec.layers import StreamingConvTranspose1d
from musicgen_bento.codec.native_ops import create_ops
from musicgen_bento.engine.audio_decoder import CHUNK_FRAMES, FIRST_CHUNK_FRAMES, AudioDecodeScheduler
from musicgen_bento.native.bindings import ThreadPool
from musicgen_bento.precision import FLOAT32
from tests.support.server import Server
from tests.support.tiny_models import MONO, load


@cache
def codec(kind: str) -> Any:
    if kind == "demo":
        return loading.build(loading.open_files(resolve_model("demo")), torch.device("cpu"), FLOAT32).codec
    if kind.startswith("audiocraft"):
        model = load(MONO).codec
    else:
        model = HFEncodecCompressionModel(EncodecModel(hugging_face_32khz()))
    remember(model)
    return InterleaveStereoCompressionModel(model).eval() if kind.endswith("stereo") else model.eval()


def hugging_face_32khz() -> EncodecConfig:
    """facebook/encodec_32khz's configuration, with fewer filters."""
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


def remember(model: Any) -> None:
    """Random LSTMs forget within a few steps; a trained one does not, and a lost state must show."""
    for module in model.modules():
        if isinstance(module, torch.nn.LSTM):
            for name, bias in module.named_parameters():
                if name.startswith("bias_ih"):
                    bias.data[module.hidden_size : 2 * module.hidden_size] = 3.0
        if hasattr(module, "embed") and not module.embed.any():
            module.embed.data.normal_()


KINDS = ["audiocraft", "audiocraft stereo", "hugging face", "hugging face stereo"]


def whole(kind: str, codes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = codec(kind).decode(codes[None], None)[0]
    return result


@cache
def decoder_of(kind: str, how: str) -> CodecDecoder:
    """The project's own, whose layers the kernel runs, or torch."""
    return CodecDecoder(codec(kind), create_ops(ThreadPool(2) if how == "kernel" else None))


HOW = pytest.mark.parametrize("how", ["kernel", "torch"])


def streamed(kind: str, codes: torch.Tensor, cuts: list[int], how: str) -> torch.Tensor:
    stream = decoder_of(kind, how).open_stream()
    edges = sorted({0, codes.shape[1], *(cut for cut in cuts if cut < codes.shape[1])})
    parts = [stream.push(codes[:, a:b]) for a, b in pairwise(edges)]
    return torch.cat([part for part in (*parts, stream.finish()) if part is not None], dim=1)


@HOW
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 60), cuts=st.lists(st.integers(1, 59), max_size=60), seed=st.integers(0, 99))
def test_any_chunking(kind: str, how: str, frames: int, cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2048, (codec(kind).num_codebooks, frames), generator=generator)
    expected = whole(kind, codes)
    made = streamed(kind, codes, cuts, how)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)
    if how == "kernel" and frames > 10:  # a shorter clip may be one that torch decodes whole
        assert torch.equal(made, streamed(kind, codes, [7], how))


@HOW
def test_a_trained_codec(how: str) -> None:
    """The built-in model's: by the kernel its LSTM has weights of 16 bits."""
    shape = codec("demo").num_codebooks, 500
    codes = torch.randint(0, codec("demo").cardinality, shape, generator=torch.Generator().manual_seed(5))
    made, expected = streamed("demo", codes, list(range(20, 500, 20)), how), whole("demo", codes)
    assert expected.std() > 0.05
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


@HOW
@pytest.mark.parametrize("kind", KINDS)
def test_the_schedule_of_the_engine(kind: str, how: str) -> None:
    codes = torch.randint(0, 2048, (codec(kind).num_codebooks, 100))
    cuts = [*accumulate(FIRST_CHUNK_FRAMES), *range(sum(FIRST_CHUNK_FRAMES) + CHUNK_FRAMES, 100, CHUNK_FRAMES)]
    torch.testing.assert_close(streamed(kind, codes, cuts, how), whole(kind, codes), atol=1e-5, rtol=0)


@HOW
def test_the_test_would_notice_a_lost_state(how: str) -> None:
    codes = torch.randint(0, 2048, (4, 60))
    decoder = decoder_of("audiocraft", how)
    stream = decoder.open_stream()
    first = stream.push(codes[:, :30])
    recurrent = next(layer for layer in stream.chain.layers if type(layer).__name__ == "Recurrent")
    recurrent.reset()
    rest = [stream.push(codes[:, 30:]), stream.finish()]
    broken = torch.cat([part for part in (first, *rest) if part is not None], dim=1)
    assert (broken - whole("audiocraft", codes)).abs().max() > 1e-4


@HOW
def test_clips_side_by_side_do_not_touch(how: str) -> None:
    decoder = decoder_of("audiocraft", how)
    codes = [torch.randint(0, 2048, (4, 40)) for _ in range(2)]
    streams = [decoder.open_stream() for _ in codes]
    parts: list[list[torch.Tensor | None]] = [[], []]
    for begin in range(0, 40, 10):
        for stream, part, code in zip(streams, parts, codes, strict=True):
            part.append(stream.push(code[:, begin : begin + 10]))
    for stream, part, code in zip(streams, parts, codes, strict=True):
        part.append(stream.finish())
        wav = torch.cat([piece for piece in part if piece is not None], dim=1)
        torch.testing.assert_close(wav, whole("audiocraft", code), atol=1e-5, rtol=0)


@HOW
@pytest.mark.parametrize("kind", KINDS)
def test_clips_decoded_together(kind: str, how: str) -> None:
    """Of two ages, so that they share some blocks; the third is too young to share its first."""
    decoder = decoder_of(kind, how)
    codes = [torch.randint(0, 2048, (codec(kind).num_codebooks, 60)) for _ in range(3)]
    streams, parts = [decoder.open_stream() for _ in codes], [[] for _ in codes]
    parts[0].append(streams[0].push(codes[0][:, :20]))
    parts[1].append(decoder.push(streams[1:2], [codes[1][:, :20]])[0])
    assert streams[0].state_signature == streams[1].state_signature != streams[2].state_signature
    for begin in (20, 25):
        made = decoder.push(streams[:2], [code[:, begin : begin + 5] for code in codes[:2]])
        for part, wav in zip(parts, made, strict=False):
            part.append(wav)
    parts[2].append(streams[2].push(codes[2][:, :30]))
    assert streams[0].state_signature == streams[2].state_signature
    for part, wav in zip(parts, decoder.push(streams, [code[:, 30:] for code in codes]), strict=True):
        part.append(wav)
    for code, part, stream in zip(codes, parts, streams, strict=True):
        made = torch.cat([piece for piece in (*part, stream.finish()) if piece is not None], dim=1)
        torch.testing.assert_close(made, whole(kind, code), atol=1e-5, rtol=0)
        if how == "kernel":
            assert torch.equal(made, streamed(kind, code, [], how))  # to the bit as alone, in one block


@HOW
def test_who_fails_together_can_be_tried_alone(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last layers of the second of two: neither has gone on."""
    decoder = decoder_of("audiocraft", how)
    codes = [torch.randint(0, 2048, (4, 40)) for _ in range(2)]
    streams, parts = [decoder.open_stream() for _ in codes], [[] for _ in codes]
    for part, wav in zip(parts, decoder.push(streams, [code[:, :20] for code in codes]), strict=True):
        part.append(wav)
    plain, calls = StreamingConvTranspose1d.push, count(1)
    with monkeypatch.context() as patch:

        def failing(self: StreamingConvTranspose1d, x: torch.Tensor) -> torch.Tensor:
            made = plain(self, x)
            if next(calls) == (8 if how == "kernel" else 4):
                raise MemoryError
            return made

        patch.setattr(StreamingConvTranspose1d, "push", failing)
        with pytest.raises(MemoryError):
            decoder.push(streams, [code[:, 20:] for code in codes])
    for stream, part, code in zip(streams, parts, codes, strict=True):
        part += [stream.push(code[:, 20:]), stream.finish()]
        made = torch.cat([piece for piece in part if piece is not None], dim=1)
        torch.testing.assert_close(made, whole("audiocraft", code), atol=1e-5, rtol=0)


class Fed:
    """What `Sounds` sees of a clip: one more frame a step."""

    def __init__(self, frames: int) -> None:
        self.tokens = np.random.default_rng(frames).integers(0, 2048, (4, frames))
        self.complete_frames = 0

    @property
    def done(self) -> bool:
        return self.complete_frames == self.tokens.shape[1]


@HOW
@pytest.mark.parametrize("alone", [True, False])
def test_clips_of_many_ages_are_heard_whole(alone: bool, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun at any step and of any length; together they go through the codec far less often."""
    sounds = AudioDecodeScheduler(decoder_of("audiocraft", how), torch.device("cpu"), alone=alone)
    companies: list[int] = []
    push = CodecDecoder.push
    monkeypatch.setattr(CodecDecoder, "push", lambda self, s, c: companies.append(len(s)) or push(self, s, c))
    begins = {0: 130, 3: 201, 4: 7, 11: 160, 30: 180}  # step: frames
    clips: dict[Any, list[Any]] = {}
    for step in range(260):
        if step in begins:
            clips[sounds.open(Fed(begins[step]))] = []
        for sound in clips:
            sound.clip.complete_frames += not sound.clip.done
        for sound, chunk in sounds.decode_ready([sound for sound in clips if not sound.over]):
            clips[sound].append(chunk)
    for sound, chunks in clips.items():
        assert sound.over
        assert [chunk.position for chunk in chunks] == [0, *accumulate(c.samples.shape[1] for c in chunks)][:-1]
        heard = np.concatenate([chunk.samples for chunk in chunks], axis=1)
        assert np.abs(heard - whole("audiocraft", torch.from_numpy(sound.clip.tokens)).numpy()).max() < 1e-5
    assert max(companies) == (1 if alone else 4)


@pytest.mark.parametrize("normalize", ["clip", "none"])
@pytest.mark.parametrize("duration", [0.1, 0.5, 8.0, 35.0])
def test_the_service_streams_what_it_answers_whole(server: Server, duration: float, normalize: str) -> None:
    """In 16 bits, with demo; 35 s is past the model's window."""
    body = {"prompt": "calm", "duration": duration, "seed": 4, "normalize": normalize}
    whole = server.generate(**body)
    assert np.abs(samples(whole.content)).max() < 32_767  # none has turned nothing down
    stream = requests.post(f"{server.url}/stream", json=body, timeout=120)
    pcm = requests.post(f"{server.url}/stream", json={**body, "format": "pcm"}, timeout=120)
    assert stream.content[:44] == whole.content[:44]
    assert len(stream.content) == len(whole.content) == int(stream.headers["content-length"])
    assert np.abs(samples(stream.content) - samples(whole.content)).max() <= 1
    assert np.abs(samples(b"\0" * 44 + pcm.content) - samples(whole.content)).max() <= 1
    assert np.abs(samples(whole.content)).max() > 0
    told = ("x-seed", "x-model", "x-audio-sample-rate", "x-audio-channels", "x-audio-duration")
    assert [stream.headers[name] for name in told] == [whole.headers[name] for name in told]


def samples(wav: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.frombuffer(wav[44:], "<i2").astype(np.int64)
