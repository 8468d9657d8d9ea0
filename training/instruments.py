"""Instruments: a note as samples. Additive and FM synthesis in numpy; nothing is sampled or borrowed.

Every instrument is a function `(frequency, seconds, rng, brightness, pulse) -> samples` at SAMPLE_RATE, peak about 1,
with its own release after `seconds`. `brightness` is 0 (dark) to 1 (bright), 0.5 neutral. All frequencies, vibrato
included, are multiples of `pulse.step`, so a sound repeats with the song's half beats. A held sound therefore has the
same tokens again half a beat later, and a repeated note has the tokens of the first one.

A small language model can learn to continue repetition. It cannot learn the phase of a free tone every 20 ms. It also
derives the beat from the repetition: when all sounds repeated after 16 frames at any tempo, it struck its notes every
16 frames too. The cost is a tuning a few cents off equal temperament (`tuned`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, sosfilt

from training.plan import FRAME_RATE, HOP, SAMPLE_RATE

Samples = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pulse:
    """The period in which a song's sounds repeat.

    Attributes:
        half_beat: the period, in codec frames.
        offset: frame of the period at which a note starts.
    """

    half_beat: int
    offset: int = 0

    @property
    def step(self) -> float:
        """The frequency in Hz of which all others are multiples."""
        return FRAME_RATE / self.half_beat

    def nearest(self, frequency: float) -> float:
        """Return the nearest multiple of `step`, for sounds that need not be in tune."""
        return self.step * max(1, round(frequency / self.step))

    def song_time(self, t: Samples) -> Samples:
        """Convert a note's time to the song's, in seconds."""
        return t + self.offset / FRAME_RATE


Instrument = Callable[[float, float, np.random.Generator, float, Pulse], Samples]

NYQUIST = SAMPLE_RATE / 2
VIBRATO_HZ = 6.0  # approximate


def _parts(frequency: float, pulse: Pulse) -> int:
    """Return the power of two by which to divide `step` so that a frequency is in tune within 25 cents."""
    parts = 1
    while pulse.step / parts > 0.03 * frequency:
        parts *= 2
    return parts


def tuned(frequency: float, pulse: Pulse) -> float:
    """Return the nearest frequency that repeats with the half beat, or, if it is low, with one or two beats."""
    step = pulse.step / _parts(frequency, pulse)
    return step * round(frequency / step)


def period(frequency: float, pulse: Pulse) -> int:
    """Return the number of codec frames after which a tuned frequency repeats."""
    return pulse.half_beat * _parts(frequency, pulse)


def _time(seconds: float) -> Samples:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _envelope(t: Samples, seconds: float, attack: float, release: float) -> Samples:
    """Return the envelope of a held note: rise in `attack`, decay in `release` after `seconds`."""
    up = np.clip(t / attack, 0, 1)
    down = np.exp(-np.clip(t - seconds, 0, None) / (release / 5))
    return up * down


def _partials(
    frequency: float, t: Samples, pulse: Pulse, weights: Samples, decay: Samples | None = None, stretch: float = 0.0
) -> Samples:
    """Sum harmonics; `decay` is a rate per partial, `stretch` the stiffness of a string."""
    n = np.arange(1, len(weights) + 1)
    frequencies = np.array([tuned(f, pulse) for f in frequency * n * np.sqrt(1 + stretch * n**2)])
    audible = frequencies < 0.9 * NYQUIST
    wave = np.zeros_like(t)
    for f, w, d in zip(
        frequencies[audible], weights[audible], (decay if decay is not None else np.zeros(len(n)))[audible], strict=True
    ):
        wave += w * np.exp(-d * t) * np.sin(2 * np.pi * f * pulse.song_time(t))
    return wave


def _tilt(brightness: float, count: int, slope: float) -> Samples:
    """Return weights of harmonics, n**-slope, steeper for dark sounds."""
    return np.arange(1, count + 1) ** -(slope + 1.6 * (0.5 - brightness))


def _lowpass(wave: Samples, cutoff: float) -> Samples:
    sos = butter(2, min(cutoff, 0.9 * NYQUIST), fs=SAMPLE_RATE, output="sos")
    filtered: Samples = sosfilt(sos, wave)
    return filtered


def _peak(wave: Samples) -> Samples:
    return wave / max(1e-9, float(np.abs(wave).max()))


def piano(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Piano: stiff, decaying partials and the noise of the hammer."""
    t = _time(seconds + 0.4)
    weights = _tilt(brightness, 14, 1.5)
    wave = _partials(frequency, t, pulse, weights, 0.9 + 0.5 * np.arange(1, 15) * (frequency / 440) ** 0.5, 3e-4)
    knock = _lowpass(rng.standard_normal(len(t)), 900) * np.exp(-t * 90)
    return _peak(wave + 0.12 * knock) * _envelope(t, seconds, 0.005, 0.4)


def electric_piano(
    frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse
) -> Samples:
    """Electric piano: FM with a short, bright attack."""
    t = _time(seconds + 0.3)
    time = pulse.song_time(t)
    index = (0.6 + 1.4 * brightness) * np.exp(-3 * t)
    wave = np.sin(2 * np.pi * frequency * time + index * np.sin(2 * np.pi * frequency * time))
    wave += 0.15 * brightness * np.exp(-14 * t) * np.sin(2 * np.pi * pulse.nearest(min(frequency * 7, 4_200)) * time)
    return _peak(wave * np.exp(-1.1 * t)) * _envelope(t, seconds, 0.004, 0.3)


def organ(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Organ: sustained drawbar partials."""
    t = _time(seconds + 0.08)
    time = pulse.song_time(t)
    wave = np.zeros_like(t)
    for ratio, weight in ((1, 1.0), (2, 0.7), (3, 0.5), (4, 0.5), (6, 0.3), (8, 0.3)):
        if frequency * ratio < 0.9 * NYQUIST:
            wave += weight * ratio ** (1.2 * (brightness - 0.5)) * np.sin(2 * np.pi * frequency * ratio * time)
    return _peak(wave * (1 + 0.04 * np.sin(2 * np.pi * pulse.nearest(VIBRATO_HZ) * time))) * _envelope(
        t, seconds, 0.008, 0.08
    )


def strings(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Strings: three voices with a slow attack and separate vibratos."""
    t = _time(seconds + 0.35)
    time = pulse.song_time(t)
    wave = np.zeros_like(t)
    for voice in range(3):
        phase = 2 * np.pi * frequency * time + 0.35 * np.sin(2 * np.pi * pulse.nearest(VIBRATO_HZ) * time + 2.1 * voice)
        for n, weight in enumerate(_tilt(brightness, 12, 1.1), 1):
            if frequency * n < 0.9 * NYQUIST:
                wave += weight * np.sin(n * phase)
    return _peak(wave) * _envelope(t, seconds, min(0.14, 0.2 * seconds), min(0.35, seconds))


def pad(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Pad: soft and wide, with slow attack and release."""
    t = _time(seconds + 0.8)
    time = pulse.song_time(t)
    wave = np.zeros_like(t)
    for voice in range(3):
        phase = 2 * np.pi * frequency * time + 0.3 * np.sin(
            2 * np.pi * pulse.nearest(VIBRATO_HZ / 2) * time + 2.1 * voice
        )
        for n, weight in enumerate(_tilt(brightness, 7, 1.7), 1):
            if frequency * n < 0.9 * NYQUIST:
                wave += weight * np.sin(n * phase)
    return _peak(wave) * _envelope(t, seconds, min(0.5, 0.2 * seconds), min(0.8, seconds))


def flute(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Flute: few harmonics, breath noise and vibrato."""
    t = _time(seconds + 0.12)
    time = pulse.song_time(t)
    vibrato = 0.12 * np.clip(t * 3, 0, 1) * np.sin(2 * np.pi * pulse.nearest(VIBRATO_HZ) * time)
    phase = 2 * np.pi * frequency * time + vibrato
    wave = np.sin(phase) + (0.1 + 0.3 * brightness) * np.sin(2 * phase) + 0.12 * brightness * np.sin(3 * phase)
    noise = rng.standard_normal(pulse.half_beat * HOP)  # repeats with the half beat
    noise = np.roll(noise, -pulse.offset * HOP)
    breath = _lowpass(np.resize(noise, len(t)), 2_000 + 3_000 * brightness)
    return _peak(wave + 0.05 * breath) * _envelope(t, seconds, min(0.05, 0.1 * seconds), 0.12)


def lead(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Synth lead: a filtered sawtooth."""
    t = _time(seconds + 0.06)
    wave = _partials(frequency, t, pulse, _tilt(0.5, 24, 1.0))
    return _peak(_lowpass(wave, 700 + 6_000 * brightness**1.5)) * _envelope(t, seconds, 0.006, 0.06)


def chip(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Chip: a square wave, as of an early game console."""
    t = _time(seconds + 0.01)
    n = np.arange(1, 40)
    wave = _partials(frequency, t, pulse, np.where(n % 2, 1.0 / n ** (1.2 + 0.6 * (0.5 - brightness)), 0.0))
    return _peak(wave) * _envelope(t, seconds, 0.002, 0.01)


def plucked(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Plucked string, plucked near its end; high partials decay fast."""
    t = _time(seconds + 0.4)
    n = np.arange(1, 17)
    weights = np.abs(np.sin(np.pi * n / 7)) * _tilt(brightness, 16, 0.9)
    wave = _partials(frequency, t, pulse, weights, 2.0 + 0.5 * n**1.5)
    return _peak(wave) * _envelope(t, seconds, 0.004, 0.4)


def bass(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Bass: few partials, below all other parts."""
    t = _time(seconds + 0.06)
    wave = _partials(frequency, t, pulse, _tilt(brightness, 10, 1.3), np.linspace(0.5, 5, 10))
    return _peak(_lowpass(wave, 300 + 1_200 * brightness)) * _envelope(t, seconds, 0.006, 0.06)


def bells(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Bells: inharmonic partials with a long decay."""
    t = _time(seconds + 1.0)
    time = pulse.song_time(t)
    wave = np.zeros_like(t)
    for ratio, weight, decay in ((1, 1, 1.6), (2.0, 0.6, 2.2), (2.76, 0.5, 3.0), (5.4, 0.3, 5.0), (8.93, 0.15, 9.0)):
        partial = tuned(frequency * ratio, pulse)
        if partial < 0.9 * NYQUIST:
            wave += weight * ratio ** (brightness - 0.5) * np.exp(-decay * t) * np.sin(2 * np.pi * partial * time)
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
    """Kick: a falling sine and a click."""
    t = _time(0.32)
    sweep = 48 + 130 * np.exp(-38 * t)
    wave = np.sin(2 * np.pi * np.cumsum(sweep) / SAMPLE_RATE) * np.exp(-11 * t)
    return wave + 0.25 * brightness * rng.standard_normal(len(t)) * np.exp(-400 * t)


def snare(rng: np.random.Generator, brightness: float) -> Samples:
    """Snare: noise over a short tone."""
    t = _time(0.24)
    noise = _lowpass(rng.standard_normal(len(t)), 9_000 + 3_000 * brightness) * np.exp(-18 * t)
    return 0.8 * _peak(noise) + 0.5 * np.sin(2 * np.pi * 190 * t) * np.exp(-26 * t)


def hat(rng: np.random.Generator, brightness: float) -> Samples:
    """Hi-hat: very short high noise."""
    t = _time(0.09)
    noise = np.diff(rng.standard_normal(len(t) + 1))
    return _peak(noise) * np.exp(-45 * t) * (0.5 + 0.4 * brightness)


def clap(rng: np.random.Generator, brightness: float) -> Samples:
    """Clap: three bursts of noise."""
    t = _time(0.2)
    bursts = sum(np.where(t >= at, np.exp(-90 * (t - at)), 0) for at in (0, 0.011, 0.022)) + np.exp(-20 * t) * (
        t > 0.022
    )
    return _peak(_lowpass(rng.standard_normal(len(t)), 6_000 + 5_000 * brightness) * bursts)


DRUMS = {"kick": kick, "snare": snare, "hat": hat, "clap": clap}
