"""A song as sound: instruments mixed, coloured, in a little room, at a level."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, sosfilt

from training.instruments import DRUMS, PITCHED, SAMPLE_RATE
from training.songs import Song, compose

RMS_DBFS = -20.0
GRID = 0.08  # seconds: notes are as long as a multiple of it, so that few are rendered twice
DRUM_LEVELS = {"kick": 1.8, "snare": 0.9, "clap": 0.8, "hat": 0.6}  # peaks, beside tones of an RMS of 1
TAIL = 2.0  # seconds a note may sound after its end


@lru_cache(maxsize=8192)
def _note(instrument: str, pitch: int, cells: int, brightness: float) -> NDArray[np.float32]:
    """A note, rendered once: songs play the same ones again and again."""
    rng = np.random.default_rng([pitch, cells, *map(ord, instrument)])
    frequency = 440.0 * 2 ** ((pitch - 69) / 12)
    wave = PITCHED[instrument](frequency, cells * GRID, rng, brightness)
    if brightness > 0.7 and instrument != "bass":
        wave = _excite(wave)
    return wave.astype(np.float32)


def _excite(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """A note with overtones of its saturated self, at a level of their own, so that a low flute is bright too."""
    overtones = sosfilt(_filter(4, (2_400.0, 5_000.0), "band"), np.tanh(5 * wave) * (1 + 0.3 * wave))
    gain = 0.28 * np.sqrt(np.mean(wave**2) / max(np.mean(overtones**2), 1e-12))
    return np.asarray(wave + gain * overtones)


@lru_cache(maxsize=64)
def _hit(drum: str, variant: int, brightness: float) -> NDArray[np.float32]:
    wave = DRUMS[drum](np.random.default_rng(variant), brightness)
    return wave.astype(np.float32)


@lru_cache(maxsize=4)
def _room(variant: int) -> NDArray[np.float32]:
    """A short tail of decaying noise."""
    rng = np.random.default_rng(1000 + variant)
    t = np.arange(int(0.35 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * np.exp(-t * 14)
    tail[: int(0.008 * SAMPLE_RATE)] = 0
    return (0.15 * tail / np.sqrt(np.sum(tail**2))).astype(np.float32)


@lru_cache(maxsize=8)
def _filter(order: int, edge: float | tuple[float, float], kind: str) -> NDArray[np.float64]:
    return np.asarray(butter(order, edge, kind, fs=SAMPLE_RATE, output="sos"))


def _colour(tones: NDArray[np.float32], brightness: float) -> NDArray[np.float32]:
    """Dark tones without their highs; all of them leave what lies above 8 kHz to the drums."""
    cut = _filter(4, 1_300.0, "low") if brightness < 0.3 else _filter(8, 6_000.0, "low")
    return np.asarray(sosfilt(cut, tones), np.float32)


def render(song: Song, seconds: float, seed: int, begin: float = 0.0) -> NDArray[np.float32]:
    """Samples [T] of a song from `begin` seconds on, within ±1, at about RMS_DBFS."""
    rng = np.random.default_rng(seed)
    length = int(seconds * SAMPLE_RATE)
    tones, drums = (np.zeros(length, np.float32) for _ in range(2))
    for note in compose(song, begin + seconds, rng):
        variant = int(rng.integers(4))
        if note.start + note.length + TAIL < begin:
            continue
        if note.pitch:
            wave = _note(note.instrument, note.pitch, max(1, round(note.length / GRID)), song.brightness)
        else:
            wave = _hit(note.instrument, variant, song.brightness)
        gain = note.level if note.pitch else note.level * DRUM_LEVELS[note.instrument]
        _add(tones if note.pitch else drums, gain * wave, int((note.start - begin) * SAMPLE_RATE))
    mix = _level(_colour(tones, song.brightness)) + drums
    wet = fftconvolve(mix, _room(int(rng.integers(4))))[:length]
    out = _level(mix + wet.astype(np.float32)) * np.float32(10 ** (RMS_DBFS / 20))
    return np.asarray(out * min(1.0, 0.97 / float(np.abs(out).max())), np.float32)


def _add(track: NDArray[np.float32], wave: NDArray[np.float32], at: int) -> None:
    """Mix a wave into a track from sample `at` on; what sticks out at either end is cut off."""
    wave = wave[max(0, -at) : max(0, len(track) - at)]
    at = max(0, at)
    track[at : at + len(wave)] += wave


def _level(wav: NDArray[np.float32]) -> NDArray[np.float32]:
    """To an RMS of 1; silence stays."""
    rms = float(np.sqrt(np.mean(wav**2)))
    return wav / np.float32(rms) if rms > 1e-9 else wav
