"""Meters: what can be heard of a clip without asking who made it. Calibrated on the renderer, used on the model.

Each gives a number; the constants say which side of it a clip is on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import find_peaks, medfilt, medfilt2d, stft

from training.plan import SAMPLE_RATE

Samples = NDArray[np.float32]
HOP = 512
# Where the sides meet: halfway between the renderer's clips, but for drums and pace, where the codec's clips part.
DRUMS = -30.0  # the renderer's have nothing from -67 to -28
FAST = 2.3  # nor these from 1.2 to 2.4
HIGH = 9.5
BRIGHT = -32.0
MAJOR = 0.0
FRAMES_A_SECOND = SAMPLE_RATE / HOP


@dataclass(frozen=True, slots=True)
class Reading:
    """What the meters say of one clip."""

    percussion: float
    tempo: float
    pace: float
    register: float
    brightness: float
    mode: float


def spectrogram(wav: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Frequencies [F] and magnitudes [F, frames]."""
    frequencies, _, spectrum = stft(wav, SAMPLE_RATE, nperseg=2048, noverlap=2048 - HOP, padded=False, boundary=None)
    return frequencies, np.abs(spectrum)


def read(wav: Samples) -> Reading:
    """All meters of a clip."""
    frequencies, magnitudes = spectrogram(wav)
    steady, struck = separate(magnitudes)
    return Reading(
        percussion=percussion(frequencies, struck, magnitudes),
        tempo=tempo(frequencies, magnitudes),
        pace=pace(frequencies, magnitudes),
        register=register(frequencies, steady),
        brightness=brightness(frequencies, steady),
        mode=mode(wav),
    )


def separate(magnitudes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sounds that last and sounds that strike, by median filters along time and frequency (FitzGerald 2010)."""
    lasting = medfilt2d(magnitudes, (1, 17))
    striking = medfilt2d(magnitudes, (17, 1))
    share = striking**2 / np.maximum(lasting**2 + striking**2, 1e-20)
    return magnitudes * (1 - share), magnitudes * share


def percussion(frequencies: NDArray[np.float64], struck: NDArray[np.float64], whole: NDArray[np.float64]) -> float:
    """How loud bursts are beside the whole, in dB, above 8.5 kHz and from 85 to 300 Hz, added.

    Drums have a hiss and a body. Hardly anything else of the renderer's has the hiss, but a string that is struck may
    hiss once it went through a codec, and a low note has a body. One strike is none: what counts is what the loudest
    twenty-fifth of a clip reaches, five strikes of eight seconds. A slow song's drums have more.
    """

    def bursts(low: float, high: float) -> float:
        band = (frequencies > low) & (frequencies < high)
        return max(float(np.percentile(np.sqrt((struck[band] ** 2).mean(axis=0)), 96)), 1e-9)

    level = max(float(np.sqrt((whole**2).mean())), 1e-9)
    return float(20 * np.log10(bursts(8_500, np.inf) * bursts(85, 300) / level**2))


def onsets(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spectral flux [frames - 1] on a log scale."""
    flux = np.maximum(np.diff(_log_bands(frequencies, magnitudes), axis=1), 0).sum(axis=0)
    return np.asarray(flux - flux.mean())


def _log_bands(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """About 40 bands a frame, wider above, the loudest of the clip at log(101)."""
    bands = np.add.reduceat(magnitudes, np.unique(np.geomspace(1, len(frequencies) - 1, 40).astype(int)), axis=0)
    return np.asarray(np.log1p(100 * bands / max(1e-9, bands.max())))


def tempo(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> float:
    """Beats a minute, 55 to 185, by the autocorrelation of the onsets; the beat's halves and doubles count for it."""
    flux = onsets(frequencies, magnitudes)
    size = 2 * len(flux)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(flux, size)) ** 2)[: len(flux)]
    correlation /= max(correlation[0], 1e-9)
    candidates = np.arange(55, 185.5, 0.5)

    def at(lag: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(lag, np.arange(len(correlation)), correlation, right=0.0)

    beat = 60 * FRAMES_A_SECOND / candidates
    score = at(beat) + 0.5 * at(2 * beat) + 0.5 * at(4 * beat) + 0.3 * at(beat / 2) + 0.3 * at(beat / 4)
    return float(candidates[int(score.argmax())])


def register(frequencies: NDArray[np.float64], steady: NDArray[np.float64]) -> float:
    """Where the pitches lie, in dB: the energy from 290 Hz to 2 kHz beside that from 85 to 270 Hz."""
    energy = (steady**2).sum(axis=1)
    high = energy[(frequencies > 290) & (frequencies < 2_000)].sum()
    low = energy[(frequencies > 85) & (frequencies < 270)].sum()
    return float(10 * np.log10(max(high, 1e-20) / max(low, 1e-20)))


def brightness(frequencies: NDArray[np.float64], steady: NDArray[np.float64]) -> float:
    """How much overtones have, in dB: the energy from 2.5 to 5 kHz beside that from 85 Hz to 2 kHz."""
    energy = (steady**2).sum(axis=1)
    high = energy[(frequencies > 2_500) & (frequencies < 5_000)].sum()
    low = energy[(frequencies > 85) & (frequencies < 2_000)].sum()
    return float(10 * np.log10(max(high, 1e-20) / max(low, 1e-20)))


def pace(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> float:
    """Onsets a second. What rises less than an onset must, as vibrato does, is none."""
    log = _log_bands(frequencies, magnitudes)
    flux = np.maximum(log[:, 2:] - log[:, :-2], 0).sum(axis=0)
    flux = flux - medfilt(flux, 31)
    peaks, _ = find_peaks(flux, height=max(0.35 * np.percentile(flux, 99), 4.0), distance=4)
    return len(peaks) / (len(flux) / FRAMES_A_SECOND)


# Temperley, The Cognition of Basic Musical Structures (2001), as revised in his Music and Probability (2007).
_MAJOR = np.array([0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400])
_MINOR = np.array([0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330])


def mode(wav: Samples) -> float:
    """Major above 0, minor below: which key profile the pitch classes fit better, over all keys."""
    # long windows: a semitone at 200 Hz is 12 Hz wide
    frequencies, _, spectrum = stft(wav, SAMPLE_RATE, nperseg=16_384, noverlap=8_192, padded=False, boundary=None)
    lines = np.abs(spectrum).mean(axis=1)
    lines = np.maximum(lines - medfilt(lines, 51), 0)  # lines, not what lies between them
    before, at, after = lines[:-2], lines[1:-1], lines[2:]
    peaks = np.where((at > before) & (at >= after), at + (before + after) / 2, 0)
    frequencies = frequencies[1:-1]
    heard = (frequencies > 80) & (frequencies < 2_000)
    classes = np.round(12 * np.log2(frequencies[heard] / 440.0) + 69).astype(int) % 12
    chroma = np.bincount(classes, weights=peaks[heard], minlength=12)

    def best(profile: NDArray[np.float64]) -> float:
        return max(float(np.corrcoef(chroma, np.roll(profile, key))[0, 1]) for key in range(12))

    return best(_MAJOR) - best(_MINOR) if chroma.any() else 0.0
