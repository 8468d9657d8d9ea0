"""Audio features of a clip: drums, tempo, onset rate, register, brightness and mode.

The thresholds are calibrated on the renderer's clips and applied to the model's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import find_peaks, medfilt, medfilt2d, stft

from training.plan import SAMPLE_RATE

Samples = NDArray[np.float32]
HOP_SAMPLES = 512
# Thresholds: halfway between the renderer's two groups of clips; for drums and pace, between those after the codec.
DRUMS_THRESHOLD_DB = -30.0  # no clip of the renderer is between -67 and -28
FAST_THRESHOLD = 2.3  # onsets a second; no clip of the renderer is between 1.2 and 2.4
HIGH_THRESHOLD_DB = 9.5
BRIGHT_THRESHOLD_DB = -32.0
MAJOR_THRESHOLD = 0.0
FRAMES_PER_SECOND = SAMPLE_RATE / HOP_SAMPLES


@dataclass(frozen=True, slots=True)
class AudioFeatures:
    """The features of one clip; see the functions of the same names."""

    percussion: float
    tempo: float
    pace: float
    register: float
    brightness: float
    mode: float


def spectrogram(wav: Samples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return frequencies [F] and magnitudes [F, frames]."""
    frequencies, _, spectrum = stft(
        wav, SAMPLE_RATE, nperseg=2048, noverlap=2048 - HOP_SAMPLES, padded=False, boundary=None
    )
    return frequencies, np.abs(spectrum)


def extract_features(wav: Samples) -> AudioFeatures:
    """Compute all features of a clip."""
    frequencies, magnitudes = spectrogram(wav)
    harmonic, percussive = separate(magnitudes)
    return AudioFeatures(
        percussion=percussion(frequencies, percussive, magnitudes),
        tempo=tempo(frequencies, magnitudes),
        pace=pace(frequencies, magnitudes),
        register=register(frequencies, harmonic),
        brightness=brightness(frequencies, harmonic),
        mode=mode(wav),
    )


def separate(magnitudes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Separate harmonic and percussive sounds by median filters along time and frequency (FitzGerald 2010)."""
    harmonic = medfilt2d(magnitudes, (1, 17))
    percussive = medfilt2d(magnitudes, (17, 1))
    share = percussive**2 / np.maximum(harmonic**2 + percussive**2, 1e-20)
    return magnitudes * (1 - share), magnitudes * share


def percussion(
    frequencies: NDArray[np.float64], percussive: NDArray[np.float64], magnitudes: NDArray[np.float64]
) -> float:
    """Return the level of bursts relative to the whole, in dB, above 8.5 kHz plus from 85 to 300 Hz.

    Drums have both bands. In the renderer's clips hardly any other sound has the high band, but a codec may add it to
    plucked strings, and low notes have the low band. A single hit does not count: the 96th percentile requires five
    hits in eight seconds, which even slow songs with drums exceed.
    """

    def bursts(low: float, high: float) -> float:
        band = (frequencies > low) & (frequencies < high)
        return max(float(np.percentile(np.sqrt((percussive[band] ** 2).mean(axis=0)), 96)), 1e-9)

    level = max(float(np.sqrt((magnitudes**2).mean())), 1e-9)
    return float(20 * np.log10(bursts(8_500, np.inf) * bursts(85, 300) / level**2))


def onsets(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the spectral flux [frames - 1] on a log scale."""
    flux = np.maximum(np.diff(_log_bands(frequencies, magnitudes), axis=1), 0).sum(axis=0)
    return np.asarray(flux - flux.mean())


def _log_bands(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return about 40 log-spaced bands a frame on a log scale, the loudest of the clip at log(101)."""
    bands = np.add.reduceat(magnitudes, np.unique(np.geomspace(1, len(frequencies) - 1, 40).astype(int)), axis=0)
    return np.asarray(np.log1p(100 * bands / max(1e-9, bands.max())))


def tempo(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> float:
    """Return beats a minute, 55 to 185, from the autocorrelation of onsets, with multiples of the beat."""
    flux = onsets(frequencies, magnitudes)
    size = 2 * len(flux)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(flux, size)) ** 2)[: len(flux)]
    correlation /= max(correlation[0], 1e-9)
    candidates = np.arange(55, 185.5, 0.5)

    def correlation_at(lag: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(lag, np.arange(len(correlation)), correlation, right=0.0)

    beat = 60 * FRAMES_PER_SECOND / candidates
    score = correlation_at(beat) + 0.5 * correlation_at(2 * beat) + 0.5 * correlation_at(4 * beat)
    score = score + 0.3 * correlation_at(beat / 2) + 0.3 * correlation_at(beat / 4)
    return float(candidates[int(score.argmax())])


def register(frequencies: NDArray[np.float64], harmonic: NDArray[np.float64]) -> float:
    """Return the energy from 290 Hz to 2 kHz relative to that from 85 to 270 Hz, in dB."""
    energy = (harmonic**2).sum(axis=1)
    high = energy[(frequencies > 290) & (frequencies < 2_000)].sum()
    low = energy[(frequencies > 85) & (frequencies < 270)].sum()
    return float(10 * np.log10(max(high, 1e-20) / max(low, 1e-20)))


def brightness(frequencies: NDArray[np.float64], harmonic: NDArray[np.float64]) -> float:
    """Return the energy from 2.5 to 5 kHz relative to that from 85 Hz to 2 kHz, in dB."""
    energy = (harmonic**2).sum(axis=1)
    high = energy[(frequencies > 2_500) & (frequencies < 5_000)].sum()
    low = energy[(frequencies > 85) & (frequencies < 2_000)].sum()
    return float(10 * np.log10(max(high, 1e-20) / max(low, 1e-20)))


def pace(frequencies: NDArray[np.float64], magnitudes: NDArray[np.float64]) -> float:
    """Return onsets a second. Smaller rises, as of vibrato, do not count."""
    log = _log_bands(frequencies, magnitudes)
    flux = np.maximum(log[:, 2:] - log[:, :-2], 0).sum(axis=0)
    flux = flux - medfilt(flux, 31)
    peaks, _ = find_peaks(flux, height=max(0.35 * np.percentile(flux, 99), 4.0), distance=4)
    return len(peaks) / (len(flux) / FRAMES_PER_SECOND)


# Temperley, The Cognition of Basic Musical Structures (2001), as revised in his Music and Probability (2007).
_MAJOR = np.array([0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400])
_MINOR = np.array([0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330])


def mode(wav: Samples) -> float:
    """Return the best correlation with a major key profile minus that with a minor one; above 0 is major."""
    # Windows are long because a semitone at 200 Hz is 12 Hz wide.
    frequencies, _, spectrum = stft(wav, SAMPLE_RATE, nperseg=16_384, noverlap=8_192, padded=False, boundary=None)
    lines = np.abs(spectrum).mean(axis=1)
    lines = np.maximum(lines - medfilt(lines, 51), 0)  # spectral lines without the noise floor
    left, center, right = lines[:-2], lines[1:-1], lines[2:]
    peaks = np.where((center > left) & (center >= right), center + (left + right) / 2, 0)
    frequencies = frequencies[1:-1]
    in_range = (frequencies > 80) & (frequencies < 2_000)
    classes = np.round(12 * np.log2(frequencies[in_range] / 440.0) + 69).astype(int) % 12
    chroma = np.bincount(classes, weights=peaks[in_range], minlength=12)

    def best_correlation(profile: NDArray[np.float64]) -> float:
        return max(float(np.corrcoef(chroma, np.roll(profile, key))[0, 1]) for key in range(12))

    return best_correlation(_MAJOR) - best_correlation(_MINOR) if chroma.any() else 0.0
