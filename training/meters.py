"""Meters: what can be heard of a clip without asking who made it. Calibrated on the renderer, used on the model.

Each takes samples [T] at SAMPLE_RATE and gives a number; THRESHOLDS say which side of it a clip is on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import find_peaks, medfilt, medfilt2d, stft

from training.instruments import SAMPLE_RATE

Samples = NDArray[np.float32]
HOP = 512
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
    """How much of the highs comes in noisy bursts: drums have them, pitched instruments hardly."""
    high = frequencies > 5_000
    bursts = np.sqrt((struck[high] ** 2).mean(axis=0))
    level = np.sqrt((whole**2).mean())
    return float(np.percentile(bursts, 95) / max(level, 1e-9))


def onsets(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spectral flux [frames - 1] on a log scale."""
    bands = np.add.reduceat(magnitudes, np.unique(np.geomspace(1, len(frequencies) - 1, 40).astype(int)), axis=0)
    log = np.log1p(100 * bands / max(1e-9, bands.max()))
    flux = np.maximum(np.diff(log, axis=1), 0).sum(axis=0)
    return np.asarray(flux - flux.mean())


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
    """Where the pitched energy lies: the mean of log2 of its frequency, between 40 and 2,500 Hz."""
    heard = (frequencies > 40) & (frequencies < 2_500)
    energy = (steady[heard] ** 2).sum(axis=1)
    return float((energy * np.log2(frequencies[heard])).sum() / max(energy.sum(), 1e-20))


def brightness(frequencies: NDArray[np.float64], steady: NDArray[np.float64]) -> float:
    """The balance of highs and lows: log energy from 1.5 to 8 kHz, against that from 60 Hz to 1.5 kHz."""
    energy = (steady**2).sum(axis=1)
    high = energy[(frequencies > 1_500) & (frequencies < 8_000)].sum()
    low = energy[(frequencies > 60) & (frequencies <= 1_500)].sum()
    return float(np.log10(max(high, 1e-20) / max(low, 1e-20)))


def pace(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> float:
    """Onsets a second."""
    flux = onsets(frequencies, magnitudes)
    peaks, _ = find_peaks(flux, height=0.25 * np.percentile(flux, 99), distance=3)
    return len(peaks) / (len(flux) / FRAMES_A_SECOND)


_MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
_MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


def mode(wav: Samples) -> float:
    """Major above 0, minor below: the better fit of the key profiles of Krumhansl and Kessler (1982)."""
    # long windows: a semitone at 200 Hz is 12 Hz wide
    frequencies, _, spectrum = stft(wav, SAMPLE_RATE, nperseg=16_384, noverlap=8_192, padded=False, boundary=None)
    steady = medfilt2d(np.abs(spectrum), (1, 3)).sum(axis=1)
    steady = np.maximum(steady - medfilt(steady, 51), 0)  # lines, not what lies between them
    heard = (frequencies > 100) & (frequencies < 1_200)
    classes = np.round(12 * np.log2(frequencies[heard] / 440.0) + 69).astype(int) % 12
    chroma = np.sqrt(np.bincount(classes, weights=steady[heard] ** 2, minlength=12))

    def best(profile: NDArray[np.float64]) -> float:
        return max(float(np.corrcoef(chroma, np.roll(profile, key))[0, 1]) for key in range(12))

    return best(_MAJOR) - best(_MINOR)
