"""Levels equal those of AudioCraft's functions; WAV files decode to the same samples."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from musicgen_bento.audio import LOUDNESS_LUFS, Waveform, encode_pcm, encode_wav, loudness, normalize, wav_header
from musicgen_bento.audio_options import Normalize

RATE = 32_000
STRATEGIES: tuple[Normalize, ...] = ("loudness", "peak", "rms", "clip", "none")

waveforms = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 2000)),
    elements=st.floats(-(2.0**60), 2.0**60, width=32),
    fill=st.just(np.float32(0.25)),
)


def tone(hertz: float, seconds: float, level: float, channels: int = 1) -> Waveform:
    time = np.arange(int(seconds * RATE)) / RATE
    return np.stack([level * np.sin(2 * np.pi * hertz * (1 + c) * time) for c in range(channels)]).astype(np.float32)


def noise(seconds: float, level: float, channels: int = 1, *, seed: int = 0) -> Waveform:
    samples = np.random.default_rng(seed).normal(0, level, (channels, int(seconds * RATE)))
    return samples.astype(np.float32)


def a440(seconds: float, level: float, channels: int = 1) -> Waveform:
    return tone(440, seconds, level, channels)


CLIPS = [
    pytest.param(signal(seconds, level, channels), id=f"{signal.__name__}-{seconds}s-{level}-{channels}ch")
    for signal in (noise, a440)
    for seconds in (1.0, 3.3)
    for level in (0.01, 0.1, 2.0)
    for channels in (1, 2)
]


def audiocraft_normalize(wav: Waveform, strategy: str) -> Waveform:
    import torch
    from audiocraft.data.audio_utils import normalize_audio

    tensor = torch.from_numpy(wav.copy())
    normalized = normalize_audio(tensor, strategy=strategy, loudness_compressor=True, sample_rate=RATE)
    return np.asarray(normalized.numpy(), dtype=np.float32)


@pytest.mark.parametrize("wav", CLIPS)
def test_loudness_equals_audiocrafts(wav: Waveform) -> None:
    if np.abs(wav).max() > 1:
        # torchaudio's meter clips at ±1 inside its filters, so AudioCraft makes such a clip louder than -14 LUFS.
        wav = wav / 16
    actual, expected = normalize(wav, RATE, "loudness"), audiocraft_normalize(wav, "loudness")
    assert loudness(actual, RATE) == pytest.approx(loudness(expected, RATE), abs=0.1)
    # Samples near ±1 do not invert tanh exactly. For the others the gain before tanh is the same to 0.1 dB.
    middle = np.abs(expected) < 0.9
    gain = np.linalg.norm(np.arctanh(actual[middle])) / np.linalg.norm(np.arctanh(expected[middle]))
    assert abs(20 * np.log10(gain)) < 0.1


@pytest.mark.parametrize("wav", CLIPS)
def test_loudness_does_not_depend_on_the_input_level(wav: Waveform) -> None:
    np.testing.assert_allclose(normalize(wav * 8, RATE), normalize(wav, RATE), atol=1e-4)


@pytest.mark.parametrize("strategy", ["peak", "rms", "clip"])
@pytest.mark.parametrize("wav", CLIPS)
def test_other_strategies_equal_audiocrafts(wav: Waveform, strategy: Normalize) -> None:
    np.testing.assert_allclose(
        normalize(wav, RATE, strategy), audiocraft_normalize(wav, strategy), rtol=1e-5, atol=1e-7
    )


def test_a_clip_reaches_the_target_loudness() -> None:
    assert loudness(normalize(tone(440, 5, 0.05), RATE), RATE) == pytest.approx(LOUDNESS_LUFS, abs=0.5)


def test_the_meter_reads_the_level_of_the_standard_sine() -> None:
    # BS.1770-4: a full-scale sine of 997 Hz in one channel reads -3.01 LUFS (EBU Tech 3341).
    assert loudness(tone(997, 5, 1.0), RATE) == pytest.approx(-3.01, abs=0.1)


@given(waveforms, st.sampled_from(STRATEGIES))
def test_normalized_samples_are_within_one(wav: Waveform, strategy: Normalize) -> None:
    before = wav.copy()
    normalized = normalize(wav, RATE, strategy)
    assert normalized.shape == wav.shape
    assert normalized.dtype == np.float32
    assert np.isfinite(normalized).all()
    assert np.abs(normalized).max(initial=0) <= 1.0
    np.testing.assert_array_equal(wav, before)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("seconds", [0.0, 1 / RATE, 0.02, 0.1, 0.3999, 0.4, 0.4001])
def test_short_clips_are_normalized_within_one(strategy: Normalize, seconds: float) -> None:
    normalized = normalize(noise(seconds, 0.2, 2), RATE, strategy)
    assert np.isfinite(normalized).all()
    assert np.abs(normalized).max(initial=0) <= 1.0


def test_a_short_clip_is_as_loud_as_a_long_one() -> None:
    short, long = normalize(tone(440, 0.1, 0.2), RATE), normalize(tone(440, 2, 0.2), RATE)
    assert np.sqrt(np.mean(short**2)) == pytest.approx(np.sqrt(np.mean(long**2)), rel=0.05)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_silence_stays_silent(strategy: Normalize) -> None:
    silence = np.zeros((2, RATE), np.float32)
    np.testing.assert_array_equal(normalize(silence, RATE, strategy), silence)


@pytest.mark.parametrize("strategy", ["loudness", "none"])
def test_nearly_silent_clips_are_not_amplified(strategy: Normalize) -> None:
    quiet = noise(1, 1e-3)
    np.testing.assert_array_equal(normalize(quiet, RATE, strategy), quiet)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_clips_that_the_meter_cannot_measure_stay_within_one(strategy: Normalize) -> None:
    """A constant, an inaudibly low tone, and channels that cancel out."""
    constant = np.full((1, 2 * RATE), 3.0, np.float32)
    infrasonic = tone(0.05, 4, 0.0035)
    opposite = np.concatenate([tone(440, 1, 3.0), -tone(440, 1, 3.0)])
    for wav in (constant, infrasonic, opposite):
        normalized = normalize(wav, RATE, strategy)
        assert np.isfinite(normalized).all()
        assert np.abs(normalized).max() <= 1.0


def test_none_keeps_the_level_or_scales_the_whole_clip_down() -> None:
    quiet, loud = noise(1, 0.1), tone(440, 1, 2.5)
    np.testing.assert_array_equal(normalize(quiet, RATE, "none"), quiet)
    np.testing.assert_allclose(normalize(loud, RATE, "none"), loud / np.abs(loud).max(), rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
def test_an_encoded_wav_decodes_to_the_same_samples(channels: int) -> None:
    wav = normalize(noise(0.5, 0.2, channels), RATE)
    data = encode_wav(wav, RATE)
    read, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert data[:4] == b"RIFF"
    assert (rate, read.T.shape) == (RATE, wav.shape)
    np.testing.assert_allclose(read.T, wav, atol=1.01 / 2**15)
    info = soundfile.info(io.BytesIO(data))
    assert (info.format, info.subtype, info.channels) == ("WAV", "PCM_16", channels)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(0, 300)), elements=st.floats(-1, 1, width=32)))
def test_header_and_pcm_equal_the_encoded_wav(wav: Waveform) -> None:
    data = encode_wav(wav, RATE)
    assert data == wav_header(len(wav), RATE, wav.shape[1]) + encode_pcm(wav)  # as a stream sends it
    read, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert read.T.shape == wav.shape
    np.testing.assert_allclose(read.T, wav, atol=1.01 / 2**15)


def test_wav_file_has_the_canonical_header_and_little_endian_samples() -> None:
    data = encode_wav(np.array([[0.0, 1.0], [-1.0, 0.5]], np.float32), RATE)
    assert data[:20] == b"RIFF" + bytes([44, 0, 0, 0]) + b"WAVEfmt " + bytes([16, 0, 0, 0])
    assert data[20:36].hex(" ", 2) == "0100 0200 007d 0000 00f4 0100 0400 1000"  # PCM, stereo, 32 kHz, bytes, 16 bits
    assert data[36:] == b"data" + bytes([8, 0, 0, 0]) + np.array([0, -32768, 32767, 16384], "<i2").tobytes()


@pytest.mark.parametrize("bad", [1.0001, -1.5, np.nan, np.inf])
def test_encoding_rejects_samples_that_it_would_clip(bad: float) -> None:
    with pytest.raises(ValueError, match="normalize first"):
        encode_wav(np.array([[0.0, bad]], np.float32), RATE)
