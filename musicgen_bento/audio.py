"""Waveforms, float32 [C, T]: set their level and encode them as WAV or PCM, in memory."""

from __future__ import annotations

import io
import wave
from typing import TypeAlias

import numpy as np
import soundfile
from numpy.typing import NDArray

from musicgen_bento.audio_options import Normalize, StreamNormalize

Waveform: TypeAlias = NDArray[np.float32]

# AudioCraft's defaults (audiocraft.data.audio_utils.normalize_audio).
PEAK_DBFS = -1.0
RMS_DBFS = -18.0
LOUDNESS_LUFS = -14.0
MIN_LOUDNESS_RMS = 2e-3  # quieter clips keep their level
MIN_PEAK = 1e-9  # inaudible; amplifying it to full scale would overflow
LOUDNESS_BLOCK_SECONDS = 0.4  # BS.1770-4 measures in blocks of this length

INT16_SCALE = 32768


def normalize(wav: Waveform, sample_rate: int, strategy: Normalize = "loudness") -> Waveform:
    """Set the level of a clip. All samples of the result are within ±1; only `clip` and `rms` clip peaks.

    Args:
        wav: [C, T], any finite level.
        sample_rate: Hz.
        strategy: `loudness` is AudioCraft's loudness strategy with its compressor (ITU-R BS.1770-4, then tanh). It is
            also right for clips beyond ±1, where AudioCraft's meter clips its input and reads too little. `peak`,
            `rms` and `clip` are AudioCraft's strategies of these names. `none` keeps the level, and scales the whole
            clip down only if its peak is beyond ±1.
    """
    peak = float(np.abs(wav).max(initial=0.0))
    if strategy == "clip":
        return clip_peaks(wav, strategy)
    if peak < MIN_PEAK:
        return wav
    if strategy == "peak":
        return wav * np.float32(_amplitude(PEAK_DBFS) / peak)
    if strategy == "rms":
        rms = _rms(wav.mean(axis=0, dtype=np.float64))
        if rms > MIN_PEAK * peak:  # otherwise the channels cancel out
            scaled: Waveform = wav * np.float32(_amplitude(RMS_DBFS) / rms)
            return np.clip(scaled, -1.0, 1.0)
    if strategy == "loudness" and _rms(wav) >= MIN_LOUDNESS_RMS:
        level = loudness(wav, sample_rate)
        if np.isfinite(level):  # otherwise the meter filters out the whole clip, such as a constant
            scaled = wav * np.float32(_amplitude(LOUDNESS_LUFS - level))
            return np.tanh(scaled)
    return wav / np.float32(max(peak, 1.0))


def clip_peaks(wav: Waveform, strategy: StreamNormalize) -> Waveform:
    """Set the level of one chunk of a clip, which does not depend on the other chunks.

    Args:
        wav: [C, T], any finite level.
        strategy: `clip` does what it does in `normalize`. `none` keeps the level and clips samples beyond ±1: a stream
            cannot be scaled down as a whole, because its loudest sample may follow later.
    """
    limit = _amplitude(PEAK_DBFS) if strategy == "clip" else 1.0
    clipped: Waveform = np.clip(wav, -limit, limit)
    return clipped


def loudness(wav: Waveform, sample_rate: int) -> float:
    """Return the integrated loudness in LUFS (ITU-R BS.1770-4). A clip shorter than one block is repeated to fill it.

    Args:
        wav: [C, T].
        sample_rate: Hz.
    """
    import pyloudnorm  # imports scipy, which takes half a second; only complete clips need it

    frames = wav.T.astype(np.float64)
    min_frames = int(LOUDNESS_BLOCK_SECONDS * sample_rate) + 1
    if len(frames) < min_frames:
        repeats = -(-min_frames // len(frames))  # rounded up
        frames = np.tile(frames, (repeats, 1))
    return float(pyloudnorm.Meter(sample_rate).integrated_loudness(frames))


def encode_wav(wav: Waveform, sample_rate: int) -> bytes:
    """Encode a clip as a WAV file of 16-bit PCM.

    Args:
        wav: [C, T] within ±1.
        sample_rate: Hz.

    Raises:
        ValueError: a sample is not finite or is beyond ±1; encoding would clip it.
    """
    if not np.isfinite(wav).all() or np.abs(wav).max(initial=0.0) > 1.0:
        raise ValueError("samples must be finite and within ±1: normalize first")
    file = io.BytesIO()
    soundfile.write(file, _to_int16(wav), sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def wav_header(channels: int, sample_rate: int, samples: int) -> bytes:
    """Return the 44-byte header of a 16-bit WAV file. The samples follow it, as `encode_pcm` encodes them.

    Args:
        channels: 1 or 2.
        sample_rate: Hz.
        samples: number of samples per channel.
    """
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((channels, 2, sample_rate, samples, "NONE", ""))
        wav.writeframesraw(b"")
        return file.getvalue()  # inside the block: closing the file would change the number of samples to 0


def encode_pcm(wav: Waveform) -> bytes:
    """Encode samples [C, T] within ±1 as interleaved 16-bit integers, little-endian."""
    return _to_int16(wav).tobytes()


def _to_int16(wav: Waveform) -> NDArray[np.int16]:
    """Convert [C, T] within ±1 to [T, C], little-endian. It rounds here, because libsndfile would truncate."""
    scaled = np.rint(wav.T * np.float32(INT16_SCALE))
    frames: NDArray[np.int16] = scaled.clip(-INT16_SCALE, INT16_SCALE - 1).astype("<i2")
    return frames


def _rms(wav: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))


def _amplitude(db: float) -> float:
    return float(10.0 ** (db / 20.0))
