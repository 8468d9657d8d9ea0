"""Instruments: a note as samples. Additive and FM synthesis in numpy; nothing is sampled or borrowed.

Every instrument is a function `(frequency, seconds, rng, brightness, since) -> samples` at SAMPLE_RATE, peak about 1,
with its own release after `seconds`. `brightness` is 0 (dark) to 1 (bright), 0.5 plain. `since` is when on the song's
clock it begins, in seconds: what vibrates goes by that clock, so that two notes meet in the same way whenever they do,
and a mixture of them has tokens that depend on the frame of 16 that it is, not on when each of them began.

They are tuned to the codec: whatever sounds is a multiple of STEP, so that a held sound repeats after 16 of its frames
exactly, and its tokens do. A language model as small as ours can learn to go on with a note; it cannot learn where in
its period a free one is every 20 ms. The price is a tuning a few cents off the tempered one (`tuned`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from training.plan import SAMPLE_RATE

Samples = NDArray[np.float64]
Instrument = Callable[[float, float, np.random.Generator, float, float], Samples]

NYQUIST = SAMPLE_RATE / 2
STEP = 3.125  # Hz: a codec at 50 frames a second sees the same again after 16 of them
WAVER = 2 * STEP  # of vibrato
DEEP = 120.0  # Hz, below which half a STEP is needed to sound in tune


def tuned(frequency: float) -> float:
    """The nearest frequency that repeats after 16 frames, or 32 if it is DEEP; 25 cents off at most, 7 on average."""
    step = STEP if frequency > DEEP else STEP / 2
    return step * round(frequency / step)


def period(frequency: float) -> int:
    """After how many of the codec's frames a tuned frequency repeats."""
    return 16 if frequency > DEEP else 32


def _time(seconds: float) -> Samples:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _envelope(t: Samples, seconds: float, attack: float, release: float) -> Samples:
    """A held note: up in `attack`, held, down in `release` after `seconds`."""
    up = np.clip(t / attack, 0, 1)
    down = np.exp(-np.clip(t - seconds, 0, None) / (release / 5))
    return up * down


def _partials(
    frequency: float, t: Samples, since: float, weights: Samples, decay: Samples | None = None, stretch: float = 0.0
) -> Samples:
    """Sum of harmonics; `decay` is a rate per partial, `stretch` makes a string stiff."""
    n = np.arange(1, len(weights) + 1)
    frequencies = np.array([tuned(f) for f in frequency * n * np.sqrt(1 + stretch * n**2)])
    heard = frequencies < 0.9 * NYQUIST
    wave = np.zeros_like(t)
    for f, w, d in zip(
        frequencies[heard], weights[heard], (decay if decay is not None else np.zeros(len(n)))[heard], strict=True
    ):
        wave += w * np.exp(-d * t) * np.sin(2 * np.pi * f * (t + since))
    return wave


def _tilt(brightness: float, count: int, slope: float) -> Samples:
    """Weights of harmonics: n**-slope, steeper where darker."""
    return np.arange(1, count + 1) ** -(slope + 1.6 * (0.5 - brightness))


def _lowpass(wave: Samples, cutoff: float) -> Samples:
    sos = butter(2, min(cutoff, 0.9 * NYQUIST), fs=SAMPLE_RATE, output="sos")
    filtered: Samples = sosfilt(sos, wave)
    return filtered


def _peak(wave: Samples) -> Samples:
    return wave / max(1e-9, float(np.abs(wave).max()))


def piano(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """Stiff, decaying partials and a hammer's knock."""
    t = _time(seconds + 0.4)
    weights = _tilt(brightness, 14, 1.5)
    wave = _partials(frequency, t, since, weights, 0.9 + 0.5 * np.arange(1, 15) * (frequency / 440) ** 0.5, 3e-4)
    knock = _lowpass(rng.standard_normal(len(t)), 900) * np.exp(-t * 90)
    return _peak(wave + 0.12 * knock) * _envelope(t, seconds, 0.005, 0.4)


def electric_piano(
    frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float
) -> Samples:
    """A tine: FM with a short, bright attack."""
    t = _time(seconds + 0.3)
    clock = t + since
    index = (0.6 + 1.4 * brightness) * np.exp(-3 * t)
    wave = np.sin(2 * np.pi * frequency * clock + index * np.sin(2 * np.pi * frequency * clock))
    wave += 0.15 * brightness * np.exp(-14 * t) * np.sin(2 * np.pi * min(frequency * 7, 4_200) * clock)
    return _peak(wave * np.exp(-1.1 * t)) * _envelope(t, seconds, 0.004, 0.3)


def organ(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """Drawbars, held."""
    t = _time(seconds + 0.08)
    clock = t + since
    wave = np.zeros_like(t)
    for ratio, weight in ((1, 1.0), (2, 0.7), (3, 0.5), (4, 0.5), (6, 0.3), (8, 0.3)):
        if frequency * ratio < 0.9 * NYQUIST:
            wave += weight * ratio ** (1.2 * (brightness - 0.5)) * np.sin(2 * np.pi * frequency * ratio * clock)
    return _peak(wave * (1 + 0.04 * np.sin(2 * np.pi * WAVER * clock))) * _envelope(t, seconds, 0.008, 0.08)


def strings(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """Three players with a slow bow, each with a vibrato of its own."""
    t = _time(seconds + 0.35)
    clock = t + since
    wave = np.zeros_like(t)
    for player in range(3):
        phase = 2 * np.pi * frequency * clock + 0.35 * np.sin(2 * np.pi * WAVER * clock + 2.1 * player)
        for n, weight in enumerate(_tilt(brightness, 12, 1.1), 1):
            if frequency * n < 0.9 * NYQUIST:
                wave += weight * np.sin(n * phase)
    return _peak(wave) * _envelope(t, seconds, min(0.14, 0.2 * seconds), min(0.35, seconds))


def pad(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """Soft and wide, no beginning and no end."""
    t = _time(seconds + 0.8)
    clock = t + since
    wave = np.zeros_like(t)
    for voice in range(3):
        phase = 2 * np.pi * frequency * clock + 0.3 * np.sin(2 * np.pi * STEP * clock + 2.1 * voice)
        for n, weight in enumerate(_tilt(brightness, 7, 1.7), 1):
            if frequency * n < 0.9 * NYQUIST:
                wave += weight * np.sin(n * phase)
    return _peak(wave) * _envelope(t, seconds, min(0.5, 0.2 * seconds), min(0.8, seconds))


def flute(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """Few harmonics, breath and vibrato."""
    t = _time(seconds + 0.12)
    clock = t + since
    phase = 2 * np.pi * frequency * clock + 0.12 * np.clip(t * 3, 0, 1) * np.sin(2 * np.pi * WAVER * clock)
    wave = np.sin(phase) + (0.1 + 0.3 * brightness) * np.sin(2 * phase) + 0.12 * brightness * np.sin(3 * phase)
    again = rng.standard_normal(int(SAMPLE_RATE / STEP))  # breath that repeats with the rest
    again = np.roll(again, -round(since * SAMPLE_RATE))
    breath = _lowpass(np.resize(again, len(t)), 2_000 + 3_000 * brightness)
    return _peak(wave + 0.05 * breath) * _envelope(t, seconds, min(0.05, 0.1 * seconds), 0.12)


def lead(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """A saw-tooth through a filter."""
    t = _time(seconds + 0.06)
    wave = _partials(frequency, t, since, _tilt(0.5, 24, 1.0))
    return _peak(_lowpass(wave, 700 + 6_000 * brightness**1.5)) * _envelope(t, seconds, 0.006, 0.06)


def chip(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """A square wave, as an early game console's."""
    t = _time(seconds + 0.01)
    n = np.arange(1, 40)
    wave = _partials(frequency, t, since, np.where(n % 2, 1.0 / n ** (1.2 + 0.6 * (0.5 - brightness)), 0.0))
    return _peak(wave) * _envelope(t, seconds, 0.002, 0.01)


def plucked(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """A string, pulled near its end: rich at first, and the higher a partial, the sooner it is gone."""
    t = _time(seconds + 0.4)
    n = np.arange(1, 17)
    weights = np.abs(np.sin(np.pi * n / 7)) * _tilt(brightness, 16, 0.9)
    wave = _partials(frequency, t, since, weights, 2.0 + 0.5 * n**1.5)
    return _peak(wave) * _envelope(t, seconds, 0.004, 0.4)


def bass(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """Round and low; plays below everything else."""
    t = _time(seconds + 0.06)
    wave = _partials(frequency, t, since, _tilt(brightness, 10, 1.3), np.linspace(0.5, 5, 10))
    return _peak(_lowpass(wave, 300 + 1_200 * brightness)) * _envelope(t, seconds, 0.006, 0.06)


def bells(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, since: float) -> Samples:
    """Inharmonic and ringing."""
    t = _time(seconds + 1.0)
    clock = t + since
    wave = np.zeros_like(t)
    for ratio, weight, decay in ((1, 1, 1.6), (2.0, 0.6, 2.2), (2.76, 0.5, 3.0), (5.4, 0.3, 5.0), (8.93, 0.15, 9.0)):
        partial = tuned(frequency * ratio)
        if partial < 0.9 * NYQUIST:
            wave += weight * ratio ** (brightness - 0.5) * np.exp(-decay * t) * np.sin(2 * np.pi * partial * clock)
    return _peak(wave) * _envelope(t, seconds + 0.6, 0.002, 0.4)


PITCHED: dict[str, Instrument] = {
    "piano": piano,
    "electric piano": electric_piano,
    "organ": organ,
    "strings": strings,
    "pad": pad,
    "flute": flute,
    "lead": lead,
    "chip": chip,
    "plucked": plucked,
    "bass": bass,
    "bells": bells,
}


def kick(rng: np.random.Generator, brightness: float) -> Samples:
    """A falling sine and a click."""
    t = _time(0.32)
    sweep = 48 + 130 * np.exp(-38 * t)
    wave = np.sin(2 * np.pi * np.cumsum(sweep) / SAMPLE_RATE) * np.exp(-11 * t)
    return wave + 0.25 * brightness * rng.standard_normal(len(t)) * np.exp(-400 * t)


def snare(rng: np.random.Generator, brightness: float) -> Samples:
    """Noise over a short tone."""
    t = _time(0.24)
    noise = _lowpass(rng.standard_normal(len(t)), 7_000 + 5_000 * brightness) * np.exp(-18 * t)
    return 0.8 * _peak(noise) + 0.5 * np.sin(2 * np.pi * 190 * t) * np.exp(-26 * t)


def hat(rng: np.random.Generator, brightness: float) -> Samples:
    """High noise, very short."""
    t = _time(0.09)
    noise = np.diff(rng.standard_normal(len(t) + 1))
    return 0.6 * _peak(noise) * np.exp(-60 * t) * (0.4 + brightness)


def clap(rng: np.random.Generator, brightness: float) -> Samples:
    """Three bursts of noise."""
    t = _time(0.2)
    bursts = sum(np.where(t >= at, np.exp(-90 * (t - at)), 0) for at in (0, 0.011, 0.022)) + np.exp(-20 * t) * (
        t > 0.022
    )
    return _peak(_lowpass(rng.standard_normal(len(t)), 6_000 + 5_000 * brightness) * bursts)


DRUMS = {"kick": kick, "snare": snare, "hat": hat, "clap": clap}
