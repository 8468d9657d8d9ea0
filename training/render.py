"""Rendering of a song as audio: instruments, timbre, a short reverb and a level."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, sosfilt

from training.instruments import DRUMS, PITCHED, Pulse, period, tuned
from training.plan import SAMPLE_RATE
from training.songs import Song, compose, half_beat

GAIN = 0.0525  # of a part with loudness 1: songs have -27 to -15 dBFS, with headroom for a model's deviations
FRAME_SAMPLES = SAMPLE_RATE // 50  # notes start at codec frames, so that the same note has the same tokens
LENGTH_STEP_SECONDS = 0.08  # note lengths are multiples of it, so that the cache holds few notes
DRUM_LEVELS = {"kick": 2.2, "snare": 1.1, "clap": 1.0, "hat": 0.8}  # peaks, relative to a part with loudness 1
TAIL_SECONDS = 2.0  # of a note's release, at most


@lru_cache(maxsize=16384)
def _note(instrument: str, pitch: int, cells: int, brightness: float, pulse: Pulse) -> NDArray[np.float32]:
    """Render a note with loudness 1; cached, because songs repeat their notes."""
    wave = _sound(instrument, pitch, cells, brightness, pulse) * _gain(instrument, pitch, brightness)
    return np.asarray(wave, np.float32)


@lru_cache(maxsize=2048)
def _gain(instrument: str, pitch: int, brightness: float) -> float:
    """Return the gain that gives a note of about a second an RMS of 1 in its loudest half second."""
    wave = _sound(instrument, pitch, 12, brightness, Pulse(12))
    blocks = wave[: len(wave) // FRAME_SAMPLES // 25 * FRAME_SAMPLES * 25].reshape(-1, 25 * FRAME_SAMPLES)
    return 1 / float(np.sqrt((blocks**2).mean(axis=1).max()))


def _sound(instrument: str, pitch: int, cells: int, brightness: float, pulse: Pulse) -> NDArray[np.float64]:
    rng = np.random.default_rng([pitch, *map(ord, instrument)])
    wave = PITCHED[instrument](tuned(_frequency(pitch), pulse), cells * LENGTH_STEP_SECONDS, rng, brightness, pulse)
    if brightness > 0.7 and instrument != "bass":
        wave = _excite(wave)
    # dark notes have no highs; above 8 kHz there are only drums
    cut = _filter(4, 1_300.0, "low") if brightness < 0.3 else _filter(8, 6_000.0, "low")
    return np.asarray(sosfilt(cut, wave))


def _frequency(pitch: int) -> float:
    return float(440.0 * 2 ** ((pitch - 69) / 12))


def _excite(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add overtones of the saturated note at a fixed level, so that a low flute is bright too."""
    overtones = sosfilt(_filter(4, (2_400.0, 5_000.0), "band"), np.tanh(5 * wave) * (1 + 0.3 * wave))
    gain = 0.28 * np.sqrt(np.mean(wave**2) / max(np.mean(overtones**2), 1e-12))
    return np.asarray(wave + gain * overtones)


@lru_cache(maxsize=64)
def _hit(drum: str, brightness: float) -> NDArray[np.float32]:
    wave = DRUMS[drum](np.random.default_rng(len(drum)), brightness)
    return (DRUM_LEVELS[drum] * wave).astype(np.float32)


@lru_cache(maxsize=1)
def _reverb_tail() -> NDArray[np.float32]:
    """Return the impulse response of the reverb: a short tail of decaying noise."""
    rng = np.random.default_rng(1000)
    t = np.arange(int(0.35 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * np.exp(-t * 14)
    tail[: int(0.008 * SAMPLE_RATE)] = 0
    return (0.15 * tail / np.sqrt(np.sum(tail**2))).astype(np.float32)


@lru_cache(maxsize=8)
def _filter(order: int, edge: float | tuple[float, float], kind: str) -> NDArray[np.float64]:
    return np.asarray(butter(order, edge, kind, fs=SAMPLE_RATE, output="sos"))


def render(song: Song, seconds: float, begin: float = 0.0, drums_only: bool = False) -> NDArray[np.float32]:
    """Render samples [T] of a song from `begin` seconds on (a whole frame), within ±1, at about -22 dBFS."""
    mix = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    song_pulse = Pulse(half_beat(song.tempo))
    for note in compose(song, begin + seconds):
        if note.start + note.length + TAIL_SECONDS < begin or (drums_only and note.pitch):
            continue
        first = math.floor(note.start * 50 + 0.501)
        if note.pitch:
            pulse = replace(song_pulse, offset=first % period(_frequency(note.pitch), song_pulse))
            wave = _note(
                note.instrument, note.pitch, max(1, round(note.length / LENGTH_STEP_SECONDS)), song.brightness, pulse
            )
        else:
            wave = _hit(note.instrument, song.brightness)
        _add(mix, np.float32(note.level) * wave, (first - round(begin * 50)) * FRAME_SAMPLES)
    wet = fftconvolve(mix, _reverb_tail())[: len(mix)]
    out = np.float32(GAIN) * (mix + wet.astype(np.float32))
    return np.asarray(out * min(1.0, 0.97 / max(float(np.abs(out).max()), 1e-9)), np.float32)


def _add(track: NDArray[np.float32], wave: NDArray[np.float32], at: int) -> None:
    """Mix a wave into a track from sample `at` on; samples beyond either end are dropped."""
    wave = wave[max(0, -at) : max(0, len(track) - at)]
    at = max(0, at)
    track[at : at + len(wave)] += wave
