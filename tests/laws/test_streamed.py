"""Law 4. Streamed equals whole: to 1e-5 before normalisation, however the frames are cut; to 1 LSB over HTTP."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import requests
import torch
from audiocraft.models.encodec import HFEncodecCompressionModel, InterleaveStereoCompressionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import EncodecConfig, EncodecModel

from musicgen_bento.engine.codec import BLOCKS, CodecDecoder
from tests.models import MONO, load
from tests.server import Server


@cache
def codec(kind: str) -> Any:
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


def streamed(kind: str, codes: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    stream = CodecDecoder(codec(kind)).open()
    edges = sorted({0, codes.shape[1], *(cut for cut in cuts if cut < codes.shape[1])})
    parts = [stream.push(codes[:, a:b]) for a, b in pairwise(edges)]
    return torch.cat([part for part in (*parts, stream.finish()) if part is not None], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 60), cuts=st.lists(st.integers(1, 59), max_size=60), seed=st.integers(0, 99))
def test_any_chunking(kind: str, frames: int, cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2048, (codec(kind).num_codebooks, frames), generator=generator)
    expected = whole(kind, codes)
    torch.testing.assert_close(streamed(kind, codes, cuts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_schedule_of_the_engine(kind: str) -> None:
    codes = torch.randint(0, 2048, (codec(kind).num_codebooks, 100))
    cuts = [sum(BLOCKS[: i + 1]) for i in range(len(BLOCKS))]
    torch.testing.assert_close(streamed(kind, codes, cuts), whole(kind, codes), atol=1e-5, rtol=0)


def test_the_test_would_notice_a_lost_state() -> None:
    codes = torch.randint(0, 2048, (4, 60))
    decoder = CodecDecoder(codec("audiocraft"))
    stream = decoder.open()
    first = stream.push(codes[:, :30])
    recurrent = next(layer for layer in stream._chain.layers if type(layer).__name__ == "Recurrent")
    recurrent.reset()
    rest = [stream.push(codes[:, 30:]), stream.finish()]
    broken = torch.cat([part for part in (first, *rest) if part is not None], dim=1)
    assert (broken - whole("audiocraft", codes)).abs().max() > 1e-4


def test_clips_side_by_side_do_not_touch() -> None:
    decoder = CodecDecoder(codec("audiocraft"))
    codes = [torch.randint(0, 2048, (4, 40)) for _ in range(2)]
    streams = [decoder.open() for _ in codes]
    parts: list[list[torch.Tensor | None]] = [[], []]
    for begin in range(0, 40, 10):
        for stream, part, code in zip(streams, parts, codes, strict=True):
            part.append(stream.push(code[:, begin : begin + 10]))
    for stream, part, code in zip(streams, parts, codes, strict=True):
        part.append(stream.finish())
        wav = torch.cat([piece for piece in part if piece is not None], dim=1)
        torch.testing.assert_close(wav, whole("audiocraft", code), atol=1e-5, rtol=0)


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
