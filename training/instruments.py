"""Instruments: a note as samples. Additive and FM synthesis in numpy; nothing is sampled or borrowed.

Every instrument is a function `(frequency, seconds, rng, brightness, pulse) -> samples` at SAMPLE_RATE, peak about 1,
with its own release after `seconds`. `brightness` is 0 (dark) to 1 (bright), 0.5 plain. What vibrates goes by the
song's pulse and comes again with its half beats: all frequencies are multiples of `pulse.step`, those of vibrato too.
So a held sound has the same tokens again half a beat later, and a note that is struck again the ones it had.

A language model as small as ours can learn to go on with what comes again; it cannot learn where in its period a free
tone is every 20 ms. And it takes the time from that: when all sounds repeated after 16 frames, whatever the tempo, it
struck its notes every 16 frames too. The price is a tuning a few cents off the tempered one (`tuned`).
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
    """A song's: what sounds repeats after `half_beat` of the codec's frames; a note begins at frame `since` of it."""

    half_beat: int
    since: int = 0

    @property
    def step(self) -> float:
        """Hz, of which everything that sounds is a multiple."""
        return FRAME_RATE / self.half_beat

    def near(self, frequency: float) -> float:
        """The multiple of `step` that is nearest, for what need not be in tune."""
        return self.step * max(1, round(frequency / self.step))

    def of(self, t: Samples) -> Samples:
        """The song's time, of a note's."""
        return t + self.since / FRAME_RATE


Instrument = Callable[[float, float, np.random.Generator, float, Pulse], Samples]

NYQUIST = SAMPLE_RATE / 2
WAVER = 6.0  # Hz, about, of vibrato


def _parts(frequency: float, pulse: Pulse) -> int:
    """Into how many parts, 1, 2, 4 ..., a step is to be split for a frequency to be in tune within 25 cents."""
    parts = 1
    while pulse.step / parts > 0.03 * frequency:
        parts *= 2
    return parts


def tuned(frequency: float, pulse: Pulse) -> float:
    """The nearest frequency that repeats with the half beat, or if it is low with the beat or two."""
    step = pulse.step / _parts(frequency, pulse)
    return step * round(frequency / step)


def period(frequency: float, pulse: Pulse) -> int:
    """After how many of the codec's frames a tuned frequency repeats."""
    return pulse.half_beat * _parts(frequency, pulse)


def _time(seconds: float) -> Samples:
    return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _envelope(t: Samples, seconds: float, attack: float, release: float) -> Samples:
    """A held note: up in `attack`, held, down in `release` after `seconds`."""
    up = np.clip(t / attack, 0, 1)
    down = np.exp(-np.clip(t - seconds, 0, None) / (release / 5))
    return up * down


def _partials(
    frequency: float, t: Samples, pulse: Pulse, weights: Samples, decay: Samples | None = None, stretch: float = 0.0
) -> Samples:
    """Sum of harmonics; `decay` is a rate per partial, `stretch` makes a string stiff."""
    n = np.arange(1, len(weights) + 1)
    frequencies = np.array([tuned(f, pulse) for f in frequency * n * np.sqrt(1 + stretch * n**2)])
    heard = frequencies < 0.9 * NYQUIST
    wave = np.zeros_like(t)
    for f, w, d in zip(
        frequencies[heard], weights[heard], (decay if decay is not None else np.zeros(len(n)))[heard], strict=True
    ):
        wave += w * np.exp(-d * t) * np.sin(2 * np.pi * f * pulse.of(t))
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


def piano(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Stiff, decaying partials and a hammer's knock."""
    t = _time(seconds + 0.4)
    weights = _tilt(brightness, 14, 1.5)
    wave = _partials(frequency, t, pulse, weights, 0.9 + 0.5 * np.arange(1, 15) * (frequency / 440) ** 0.5, 3e-4)
    knock = _lowpass(rng.standard_normal(len(t)), 900) * np.exp(-t * 90)
    return _peak(wave + 0.12 * knock) * _envelope(t, seconds, 0.005, 0.4)


def electric_piano(
    frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse
) -> Samples:
    """A tine: FM with a short, bright attack."""
    t = _time(seconds + 0.3)
    time = pulse.of(t)
    index = (0.6 + 1.4 * brightness) * np.exp(-3 * t)
    wave = np.sin(2 * np.pi * frequency * time + index * np.sin(2 * np.pi * frequency * time))
    wave += 0.15 * brightness * np.exp(-14 * t) * np.sin(2 * np.pi * pulse.near(min(frequency * 7, 4_200)) * time)
    return _peak(wave * np.exp(-1.1 * t)) * _envelope(t, seconds, 0.004, 0.3)


def organ(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Drawbars, held."""
    t = _time(seconds + 0.08)
    time = pulse.of(t)
    wave = np.zeros_like(t)
    for ratio, weight in ((1, 1.0), (2, 0.7), (3, 0.5), (4, 0.5), (6, 0.3), (8, 0.3)):
        if frequency * ratio < 0.9 * NYQUIST:
            wave += weight * ratio ** (1.2 * (brightness - 0.5)) * np.sin(2 * np.pi * frequency * ratio * time)
    return _peak(wave * (1 + 0.04 * np.sin(2 * np.pi * pulse.near(WAVER) * time))) * _envelope(t, seconds, 0.008, 0.08)


def strings(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Three players with a slow bow, each with a vibrato of its own."""
    t = _time(seconds + 0.35)
    time = pulse.of(t)
    wave = np.zeros_like(t)
    for player in range(3):
        phase = 2 * np.pi * frequency * time + 0.35 * np.sin(2 * np.pi * pulse.near(WAVER) * time + 2.1 * player)
        for n, weight in enumerate(_tilt(brightness, 12, 1.1), 1):
            if frequency * n < 0.9 * NYQUIST:
                wave += weight * np.sin(n * phase)
    return _peak(wave) * _envelope(t, seconds, min(0.14, 0.2 * seconds), min(0.35, seconds))


def pad(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Soft and wide, no beginning and no end."""
    t = _time(seconds + 0.8)
    time = pulse.of(t)
    wave = np.zeros_like(t)
    for voice in range(3):
        phase = 2 * np.pi * frequency * time + 0.3 * np.sin(2 * np.pi * pulse.near(WAVER / 2) * time + 2.1 * voice)
        for n, weight in enumerate(_tilt(brightness, 7, 1.7), 1):
            if frequency * n < 0.9 * NYQUIST:
                wave += weight * np.sin(n * phase)
    return _peak(wave) * _envelope(t, seconds, min(0.5, 0.2 * seconds), min(0.8, seconds))


def flute(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Few harmonics, breath and vibrato."""
    t = _time(seconds + 0.12)
    time = pulse.of(t)
    vibrato = 0.12 * np.clip(t * 3, 0, 1) * np.sin(2 * np.pi * pulse.near(WAVER) * time)
    phase = 2 * np.pi * frequency * time + vibrato
    wave = np.sin(phase) + (0.1 + 0.3 * brightness) * np.sin(2 * phase) + 0.12 * brightness * np.sin(3 * phase)
    again = rng.standard_normal(pulse.half_beat * HOP)  # breath that repeats with the rest
    again = np.roll(again, -pulse.since * HOP)
    breath = _lowpass(np.resize(again, len(t)), 2_000 + 3_000 * brightness)
    return _peak(wave + 0.05 * breath) * _envelope(t, seconds, min(0.05, 0.1 * seconds), 0.12)


def lead(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """A saw-tooth through a filter."""
    t = _time(seconds + 0.06)
    wave = _partials(frequency, t, pulse, _tilt(0.5, 24, 1.0))
    return _peak(_lowpass(wave, 700 + 6_000 * brightness**1.5)) * _envelope(t, seconds, 0.006, 0.06)


def chip(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """A square wave, as an early game console's."""
    t = _time(seconds + 0.01)
    n = np.arange(1, 40)
    wave = _partials(frequency, t, pulse, np.where(n % 2, 1.0 / n ** (1.2 + 0.6 * (0.5 - brightness)), 0.0))
    return _peak(wave) * _envelope(t, seconds, 0.002, 0.01)


def plucked(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """A string, pulled near its end: rich at first, and the higher a partial, the sooner it is gone."""
    t = _time(seconds + 0.4)
    n = np.arange(1, 17)
    weights = np.abs(np.sin(np.pi * n / 7)) * _tilt(brightness, 16, 0.9)
    wave = _partials(frequency, t, pulse, weights, 2.0 + 0.5 * n**1.5)
    return _peak(wave) * _envelope(t, seconds, 0.004, 0.4)


def bass(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Round and low; plays below everything else."""
    t = _time(seconds + 0.06)
    wave = _partials(frequency, t, pulse, _tilt(brightness, 10, 1.3), np.linspace(0.5, 5, 10))
    return _peak(_lowpass(wave, 300 + 1_200 * brightness)) * _envelope(t, seconds, 0.006, 0.06)


def bells(frequency: float, seconds: float, rng: np.random.Generator, brightness: float, pulse: Pulse) -> Samples:
    """Inharmonic and ringing."""
    t = _time(seconds + 1.0)
    time = pulse.of(t)
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
    """A falling sine and a click."""
    t = _time(0.32)
    sweep = 48 + 130 * np.exp(-38 * t)
    wave = np.sin(2 * np.pi * np.cumsum(sweep) / SAMPLE_RATE) * np.exp(-11 * t)
    return wave + 0.25 * brightness * rng.standard_normal(len(t)) * np.exp(-400 * t)


def snare(rng: np.random.Generator, brightness: float) -> Samples:
    """Noise over a short tone."""
    t = _time(0.24)
    noise = _lowpass(rng.standard_normal(len(t)), 9_000 + 3_000 * brightness) * np.exp(-18 * t)
    return 0.8 * _peak(noise) + 0.5 * np.sin(2 * np.pi * 190 * t) * np.exp(-26 * t)


def hat(rng: np.random.Generator, brightness: float) -> Samples:
    """High noise, very short."""
    t = _time(0.09)
    noise = np.diff(rng.standard_normal(len(t) + 1))
    return _peak(noise) * np.exp(-45 * t) * (0.5 + 0.4 * brightness)


def clap(rng: np.random.Generator, brightness: float) -> Samples:
    """Three bursts of noise."""
    t = _time(0.2)
    bursts = sum(np.where(t >= at, np.exp(-90 * (t - at)), 0) for at in (0, 0.011, 0.022)) + np.exp(-20 * t) * (
        t > 0.022
    )
    return _peak(_lowpass(rng.standard_normal(len(t)), 6_000 + 5_000 * brightness) * bursts)


DRUMS = {"kick": kick, "snare": snare, "hat": hat, "clap": clap}
