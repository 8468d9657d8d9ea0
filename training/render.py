"""A song as sound: instruments mixed, a little room, a level."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, lfilter

from training.instruments import DRUMS, PITCHED, SAMPLE_RATE
from training.songs import Song, compose

RMS_DBFS = -20.0


@lru_cache(maxsize=4096)
def _note(instrument: str, pitch: int, hundredths: int, brightness: float) -> NDArray[np.float32]:
    """A note, rendered once: songs play the same ones again and again."""
    rng = np.random.default_rng([pitch, hundredths, *map(ord, instrument)])
    frequency = 440.0 * 2 ** ((pitch - 69) / 12)
    return PITCHED[instrument](frequency, hundredths / 100, rng, brightness).astype(np.float32)


@lru_cache(maxsize=64)
def _hit(drum: str, variant: int, brightness: float) -> NDArray[np.float32]:
    return DRUMS[drum](np.random.default_rng(variant), brightness).astype(np.float32)


@lru_cache(maxsize=4)
def _room(variant: int) -> NDArray[np.float32]:
    """A short tail of decaying noise."""
    rng = np.random.default_rng(1000 + variant)
    t = np.arange(int(0.35 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * np.exp(-t * 14)
    tail[: int(0.008 * SAMPLE_RATE)] = 0
    return (0.35 * tail / np.sqrt(np.sum(tail**2))).astype(np.float32)


def _colour(mix: NDArray[np.float32], brightness: float) -> NDArray[np.float32]:
    """The whole mix darker or brighter: a first-order shelf around 1.2 kHz, 14 dB down to 10 dB up."""
    low = lfilter(*butter(1, 1_200, fs=SAMPLE_RATE), mix)
    gain = 10 ** (np.interp(brightness, (0, 0.5, 1), (-14, 0, 10)) / 20)
    return np.asarray(low + gain * (mix - low), np.float32)


def render(song: Song, seconds: float, seed: int) -> NDArray[np.float32]:
    """Samples [T] of a song, within ±1, at about RMS_DBFS."""
    rng = np.random.default_rng(seed)
    length = int(seconds * SAMPLE_RATE)
    tones, drums = (np.zeros(length + 2 * SAMPLE_RATE, np.float32) for _ in range(2))
    for note in compose(song, seconds, rng):
        if note.pitch:
            wave = _note(note.instrument, note.pitch, max(5, round(note.length * 100)), song.brightness)
        else:
            wave = _hit(note.instrument, int(rng.integers(4)), song.brightness)
        track, at = tones if note.pitch else drums, int(note.start * SAMPLE_RATE)
        wave = wave[: max(0, len(track) - at)]
        track[at : at + len(wave)] += note.level * wave
    # Drums are as loud beside the tones as tones are beside each other, whatever plays.
    mix = _level(_colour(tones[:length], song.brightness)) + 0.8 * _level(drums[:length])
    wet = fftconvolve(mix, _room(int(rng.integers(4))))[:length]
    out = mix + wet.astype(np.float32)
    out = _level(out) * np.float32(10 ** (RMS_DBFS / 20))
    return np.asarray(out * min(1.0, 0.97 / float(np.abs(out).max())), np.float32)


def _level(wav: NDArray[np.float32]) -> NDArray[np.float32]:
    """To an RMS of 1; silence stays."""
    rms = float(np.sqrt(np.mean(wav**2)))
    return wav / np.float32(rms) if rms > 1e-9 else wav
