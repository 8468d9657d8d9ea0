"""Waveforms [C, T], float32: levels, and WAV. In memory only."""

from __future__ import annotations

import io
import wave
from typing import Literal, TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

Waveform: TypeAlias = NDArray[np.float32]
Normalize: TypeAlias = Literal["loudness", "peak", "rms", "clip", "none"]
StreamNormalize: TypeAlias = Literal["clip", "none"]

# AudioCraft's defaults (audiocraft.data.audio_utils.normalize_audio).
PEAK_DBFS = -1.0
RMS_DBFS = -18.0
LOUDNESS_LUFS = -14.0
QUIETEST_RMS = 2e-3
SILENCE = 1e-9  # below any sound; raising it to full scale would only overflow
LOUDNESS_BLOCK = 0.4  # seconds; BS.1770-4 measures in blocks of this length


def normalize(wav: Waveform, sample_rate: int, how: Normalize = "loudness") -> Waveform:
    """Bring a clip to a level. Nothing in the result is beyond ±1, and only `clip` and `rms` cut peaks off.

    Args:
        wav: [C, T], any finite level.
        sample_rate: Hz.
        how: `loudness` is AudioCraft's loudness strategy with its compressor (ITU-R BS.1770-4, then tanh), but
            right for clips beyond ±1 too, where AudioCraft's meter clips inside and reads too little; `peak`,
            `rms` and `clip` are its strategies of those names; `none` keeps the level and turns the clip down
            as a whole only where it would not fit.
    """
    peak = float(np.abs(wav).max(initial=0.0))
    if how == "clip":
        return cut(wav, how)
    if peak < SILENCE:
        return wav
    if how == "peak":
        return wav * np.float32(_amplitude(PEAK_DBFS) / peak)
    if how == "rms":
        rms = _rms(wav.mean(axis=0, dtype=np.float64))
        if rms > SILENCE * peak:  # else the channels cancel out
            louder: Waveform = wav * np.float32(_amplitude(RMS_DBFS) / rms)
            return np.clip(louder, -1.0, 1.0)
    if how == "loudness" and _rms(wav) >= QUIETEST_RMS:
        level = loudness(wav, sample_rate)
        if np.isfinite(level):  # else all of it is below what the ear hears, a constant for one
            louder = wav * np.float32(_amplitude(LOUDNESS_LUFS - level))
            return np.tanh(louder)
    return wav / np.float32(max(peak, 1.0))


def cut(wav: Waveform, how: StreamNormalize) -> Waveform:
    """Bring a piece of a clip to a level, without the rest of it.

    Args:
        wav: [C, T], any finite level.
        how: `clip` is what `normalize` does; `none` keeps the level too, and cuts off what is beyond ±1: a stream
            cannot be turned down as a whole, for its loudest sample may be still to come.
    """
    limit = _amplitude(PEAK_DBFS) if how == "clip" else 1.0
    fits: Waveform = np.clip(wav, -limit, limit)
    return fits


def loudness(wav: Waveform, sample_rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4). A clip shorter than one block is measured repeated."""
    import pyloudnorm  # brings scipy, half a second; only whole clips need it

    frames = wav.T.astype(np.float64)
    shortest = int(LOUDNESS_BLOCK * sample_rate) + 1
    if len(frames) < shortest:
        frames = np.tile(frames, (-(-shortest // len(frames)), 1))
    return float(pyloudnorm.Meter(sample_rate).integrated_loudness(frames))


def encode_wav(wav: Waveform, sample_rate: int) -> bytes:
    """A WAV file, 16-bit PCM.

    Args:
        wav: [C, T] within ±1.
        sample_rate: Hz.

    Raises:
        ValueError: a sample is not finite or beyond ±1; writing it would clip.
    """
    if not np.isfinite(wav).all() or np.abs(wav).max(initial=0.0) > 1.0:
        raise ValueError("samples must be finite and within ±1: normalize first")
    file = io.BytesIO()
    soundfile.write(file, _frames(wav), sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def wav_header(channels: int, sample_rate: int, samples: int) -> bytes:
    """What a 16-bit WAV of so many samples per channel begins with, 44 bytes. The samples follow, as `pcm` has them."""
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((channels, 2, sample_rate, samples, "NONE", ""))
        wav.writeframesraw(b"")
        return file.getvalue()  # before the block ends: it would write down that there are no samples


def pcm(wav: Waveform) -> bytes:
    """Samples [C, T] within ±1 as 16-bit integers, little-endian, the channels in turn."""
    return _frames(wav).tobytes()


def _frames(wav: Waveform) -> NDArray[np.int16]:
    """[C, T] within ±1 → [T, C], little-endian. Rounded here: libsndfile would cut off what is behind the point."""
    frames: NDArray[np.int16] = np.rint(wav.T * np.float32(32768)).clip(-32768, 32767).astype("<i2")
    return frames


def _rms(wav: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))


def _amplitude(db: float) -> float:
    return float(10.0 ** (db / 20.0))
