"""Levels against AudioCraft's own functions, and WAV there and back."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from musicgen_bento.audio import LOUDNESS_LUFS, Normalize, Waveform, encode_wav, loudness, normalize, pcm, wav_header

RATE = 32_000
ALL: tuple[Normalize, ...] = ("loudness", "peak", "rms", "clip", "none")

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
    made = np.random.default_rng(seed).normal(0, level, (channels, int(seconds * RATE)))
    return made.astype(np.float32)


def a440(seconds: float, level: float, channels: int = 1) -> Waveform:
    return tone(440, seconds, level, channels)


CLIPS = [
    pytest.param(make(seconds, level, channels), id=f"{make.__name__}-{seconds}s-{level}-{channels}ch")
    for make in (noise, a440)
    for seconds in (1.0, 3.3)
    for level in (0.01, 0.1, 2.0)
    for channels in (1, 2)
]


def audiocraft_level(wav: Waveform, how: str) -> Waveform:
    import torch
    from audiocraft.data.audio_utils import normalize_audio

    made = normalize_audio(torch.from_numpy(wav.copy()), strategy=how, loudness_compressor=True, sample_rate=RATE)
    return np.asarray(made.numpy(), dtype=np.float32)


@pytest.mark.parametrize("wav", CLIPS)
def test_loudness_is_audiocrafts(wav: Waveform) -> None:
    if np.abs(wav).max() > 1:
        # torchaudio's meter clips at ±1 inside its filters, so AudioCraft makes such a clip louder than it says.
        wav = wav / 16
    ours, theirs = normalize(wav, RATE, "loudness"), audiocraft_level(wav, "loudness")
    assert loudness(ours, RATE) == pytest.approx(loudness(theirs, RATE), abs=0.1)
    # Undo tanh where it can be undone: the gain before it is the same to 0.1 dB.
    middle = np.abs(theirs) < 0.9
    gain = np.linalg.norm(np.arctanh(ours[middle])) / np.linalg.norm(np.arctanh(theirs[middle]))
    assert abs(20 * np.log10(gain)) < 0.1


@pytest.mark.parametrize("wav", CLIPS)
def test_the_level_of_the_input_does_not_matter(wav: Waveform) -> None:
    np.testing.assert_allclose(normalize(wav * 8, RATE), normalize(wav, RATE), atol=1e-4)


@pytest.mark.parametrize("how", ["peak", "rms", "clip"])
@pytest.mark.parametrize("wav", CLIPS)
def test_other_strategies_are_audiocrafts(wav: Waveform, how: Normalize) -> None:
    np.testing.assert_allclose(normalize(wav, RATE, how), audiocraft_level(wav, how), rtol=1e-5, atol=1e-7)


def test_a_full_clip_arrives_at_the_target() -> None:
    assert loudness(normalize(tone(440, 5, 0.05), RATE), RATE) == pytest.approx(LOUDNESS_LUFS, abs=0.5)


def test_loudness_reads_what_it_should() -> None:
    # BS.1770-4: a full-scale sine of 997 Hz in one channel reads -3.01 LUFS (EBU Tech 3341).
    assert loudness(tone(997, 5, 1.0), RATE) == pytest.approx(-3.01, abs=0.1)


@given(waveforms, st.sampled_from(ALL))
def test_nothing_is_beyond_one(wav: Waveform, how: Normalize) -> None:
    before = wav.copy()
    level = normalize(wav, RATE, how)
    assert level.shape == wav.shape
    assert level.dtype == np.float32
    assert np.isfinite(level).all()
    assert np.abs(level).max(initial=0) <= 1.0
    np.testing.assert_array_equal(wav, before)


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("seconds", [0.0, 1 / RATE, 0.02, 0.1, 0.3999, 0.4, 0.4001])
def test_short_clips(how: Normalize, seconds: float) -> None:
    level = normalize(noise(seconds, 0.2, 2), RATE, how)
    assert np.isfinite(level).all()
    assert np.abs(level).max(initial=0) <= 1.0


def test_a_short_clip_is_as_loud_as_a_long_one() -> None:
    short, long = normalize(tone(440, 0.1, 0.2), RATE), normalize(tone(440, 2, 0.2), RATE)
    assert np.sqrt(np.mean(short**2)) == pytest.approx(np.sqrt(np.mean(long**2)), rel=0.05)


@pytest.mark.parametrize("how", ALL)
def test_silence_stays_silent(how: Normalize) -> None:
    silence = np.zeros((2, RATE), np.float32)
    np.testing.assert_array_equal(normalize(silence, RATE, how), silence)


@pytest.mark.parametrize("how", ["loudness", "none"])
def test_what_is_nearly_silent_is_not_turned_up(how: Normalize) -> None:
    quiet = noise(1, 1e-3)
    np.testing.assert_array_equal(normalize(quiet, RATE, how), quiet)


@pytest.mark.parametrize("how", ALL)
def test_levels_that_no_meter_reads(how: Normalize) -> None:
    """A constant that the ear does not hear; channels that cancel out."""
    constant = np.full((1, 2 * RATE), 3.0, np.float32)
    below = tone(0.05, 4, 0.0035)
    opposite = np.concatenate([tone(440, 1, 3.0), -tone(440, 1, 3.0)])
    for wav in (constant, below, opposite):
        level = normalize(wav, RATE, how)
        assert np.isfinite(level).all()
        assert np.abs(level).max() <= 1.0


def test_none_keeps_what_fits_and_turns_down_the_rest_as_a_whole() -> None:
    fits, loud = noise(1, 0.1), tone(440, 1, 2.5)
    np.testing.assert_array_equal(normalize(fits, RATE, "none"), fits)
    np.testing.assert_allclose(normalize(loud, RATE, "none"), loud / np.abs(loud).max(), rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2])
def test_wav_there_and_back(channels: int) -> None:
    wav = normalize(noise(0.5, 0.2, channels), RATE)
    data = encode_wav(wav, RATE)
    read, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert data[:4] == b"RIFF"
    assert (rate, read.T.shape) == (RATE, wav.shape)
    np.testing.assert_allclose(read.T, wav, atol=1.01 / 2**15)
    info = soundfile.info(io.BytesIO(data))
    assert (info.format, info.subtype, info.channels) == ("WAV", "PCM_16", channels)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 2), st.integers(0, 300)), elements=st.floats(-1, 1, width=32)))
def test_any_samples_within_one_survive(wav: Waveform) -> None:
    data = encode_wav(wav, RATE)
    assert data == wav_header(len(wav), RATE, wav.shape[1]) + pcm(wav)  # as it is streamed
    read, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert read.T.shape == wav.shape
    np.testing.assert_allclose(read.T, wav, atol=1.01 / 2**15)


def test_a_wav_byte_by_byte() -> None:
    data = encode_wav(np.array([[0.0, 1.0], [-1.0, 0.5]], np.float32), RATE)
    assert data[:20] == b"RIFF" + bytes([44, 0, 0, 0]) + b"WAVEfmt " + bytes([16, 0, 0, 0])
    assert data[20:36].hex(" ", 2) == "0100 0200 007d 0000 00f4 0100 0400 1000"  # PCM, stereo, 32 kHz, bytes, 16 bits
    assert data[36:] == b"data" + bytes([8, 0, 0, 0]) + np.array([0, -32768, 32767, 16384], "<i2").tobytes()


@pytest.mark.parametrize("bad", [1.0001, -1.5, np.nan, np.inf])
def test_wav_never_clips_silently(bad: float) -> None:
    with pytest.raises(ValueError, match="normalize first"):
        encode_wav(np.array([[0.0, bad]], np.float32), RATE)
