"""A song as sound: instruments mixed, coloured, in a little room, at a level."""

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

GAIN = 0.0525  # of a part at a loudness of 1: songs come to -27 to -15 dBFS, and what a model adds is not cut off
FRAME = SAMPLE_RATE // 50  # notes begin where one of the codec's frames does, so that the same note has the same tokens
GRID = 0.08  # seconds: notes are as long as a multiple of it, so that few are rendered twice
DRUM_LEVELS = {"kick": 2.2, "snare": 1.1, "clap": 1.0, "hat": 0.8}  # peaks, beside a part of loudness 1
TAIL = 2.0  # seconds a note may sound after its end


@lru_cache(maxsize=16384)
def _note(instrument: str, pitch: int, cells: int, brightness: float, pulse: Pulse) -> NDArray[np.float32]:
    """A note in its colour, at a loudness of 1, rendered once: songs play the same ones again and again."""
    wave = _sound(instrument, pitch, cells, brightness, pulse) * _gain(instrument, pitch, brightness)
    return np.asarray(wave, np.float32)


@lru_cache(maxsize=2048)
def _gain(instrument: str, pitch: int, brightness: float) -> float:
    """What brings a note of about a second to an RMS of 1 in its loudest half, whatever the length that is played."""
    wave = _sound(instrument, pitch, 12, brightness, Pulse(12))
    blocks = wave[: len(wave) // FRAME // 25 * FRAME * 25].reshape(-1, 25 * FRAME)
    return 1 / float(np.sqrt((blocks**2).mean(axis=1).max()))


def _sound(instrument: str, pitch: int, cells: int, brightness: float, pulse: Pulse) -> NDArray[np.float64]:
    rng = np.random.default_rng([pitch, *map(ord, instrument)])
    wave = PITCHED[instrument](tuned(_frequency(pitch), pulse), cells * GRID, rng, brightness, pulse)
    if brightness > 0.7 and instrument != "bass":
        wave = _excite(wave)
    # dark ones without their highs; all of them leave what lies above 8 kHz to the drums
    cut = _filter(4, 1_300.0, "low") if brightness < 0.3 else _filter(8, 6_000.0, "low")
    return np.asarray(sosfilt(cut, wave))


def _frequency(pitch: int) -> float:
    return float(440.0 * 2 ** ((pitch - 69) / 12))


def _excite(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """A note with overtones of its saturated self, at a level of their own, so that a low flute is bright too."""
    overtones = sosfilt(_filter(4, (2_400.0, 5_000.0), "band"), np.tanh(5 * wave) * (1 + 0.3 * wave))
    gain = 0.28 * np.sqrt(np.mean(wave**2) / max(np.mean(overtones**2), 1e-12))
    return np.asarray(wave + gain * overtones)


@lru_cache(maxsize=64)
def _hit(drum: str, brightness: float) -> NDArray[np.float32]:
    wave = DRUMS[drum](np.random.default_rng(len(drum)), brightness)
    return (DRUM_LEVELS[drum] * wave).astype(np.float32)


@lru_cache(maxsize=1)
def _room() -> NDArray[np.float32]:
    """A short tail of decaying noise."""
    rng = np.random.default_rng(1000)
    t = np.arange(int(0.35 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * np.exp(-t * 14)
    tail[: int(0.008 * SAMPLE_RATE)] = 0
    return (0.15 * tail / np.sqrt(np.sum(tail**2))).astype(np.float32)


@lru_cache(maxsize=8)
def _filter(order: int, edge: float | tuple[float, float], kind: str) -> NDArray[np.float64]:
    return np.asarray(butter(order, edge, kind, fs=SAMPLE_RATE, output="sos"))


def render(song: Song, seconds: float, begin: float = 0.0, drums_alone: bool = False) -> NDArray[np.float32]:
    """Samples [T] of a song from `begin` seconds on (a whole frame), within ±1, at about -22 dBFS."""
    mix = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
    whole = Pulse(half_beat(song.tempo))
    for note in compose(song, begin + seconds):
        if note.start + note.length + TAIL < begin or (drums_alone and note.pitch):
            continue
        first = math.floor(note.start * 50 + 0.501)
        if note.pitch:
            pulse = replace(whole, since=first % period(_frequency(note.pitch), whole))
            wave = _note(note.instrument, note.pitch, max(1, round(note.length / GRID)), song.brightness, pulse)
        else:
            wave = _hit(note.instrument, song.brightness)
        _add(mix, np.float32(note.level) * wave, (first - round(begin * 50)) * FRAME)
    wet = fftconvolve(mix, _room())[: len(mix)]
    out = np.float32(GAIN) * (mix + wet.astype(np.float32))
    return np.asarray(out * min(1.0, 0.97 / max(float(np.abs(out).max()), 1e-9)), np.float32)


def _add(track: NDArray[np.float32], wave: NDArray[np.float32], at: int) -> None:
    """Mix a wave into a track from sample `at` on; what sticks out at either end is cut off."""
    wave = wave[max(0, -at) : max(0, len(track) - at)]
    at = max(0, at)
    track[at : at + len(wave)] += wave
