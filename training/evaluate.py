"""Evaluation of the built-in model by audio features, on new captions.

There are few songs, so most of the captions describe training songs in other words. The codec is evaluated on held-out
songs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import musicgen_bento
from training import audio_features
from training.audio_features import AudioFeatures
from training.captions import Caption, caption, colour, speed
from training.dataset import shuffled_songs
from training.plan import SAMPLE_RATE, Plan
from training.render import render
from training.songs import SONGS, Song, draw_song

SEED = 10  # of the captions; no result with it was used for training or tuning
SECONDS = 8.0
CLIPS = 200
BATCH_SIZE = 12
Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PromptAttribute:
    """An attribute that a prompt may request, and its detection in audio.

    Attributes:
        name: in the table.
        caption_topic: topic that a caption must mention for the attribute to be evaluated.
        expected: returns the value of a song: True, False, or None if it is neither.
        detected: returns the value of audio features.
        target: share of clips that should be correct.
        required: whether the target must be met; otherwise it is an aim.
    """

    name: str
    caption_topic: str
    expected: Callable[[Song], bool | None]
    detected: Callable[[AudioFeatures, Song], bool]
    target: float
    required: bool = True


def _to_bool(value: str, yes: str, no: str) -> bool | None:
    return {yes: True, no: False}.get(value)


def _is_near_tempo(tempo: float, expected: float) -> bool:
    return any(abs(tempo * factor / expected - 1) < 0.08 for factor in (0.5, 1, 2))


ATTRIBUTES = (
    PromptAttribute(
        "drums or none",
        "drums",
        lambda song: song.drums,
        lambda features, song: features.percussion > audio_features.DRUMS_THRESHOLD_DB,
        0.95,
    ),
    PromptAttribute(
        "slow or fast",
        "tempo",
        lambda song: _to_bool(speed(song), "fast", "slow"),
        lambda features, song: features.pace > audio_features.FAST_THRESHOLD,
        0.90,
    ),
    PromptAttribute(
        "bass or high",
        "register",
        lambda song: _to_bool(song.register, "high", "low"),
        lambda features, song: features.register > audio_features.HIGH_THRESHOLD_DB,
        0.90,
    ),
    PromptAttribute(
        "dark or bright",
        "colour",
        lambda song: _to_bool(colour(song), "bright", "dark"),
        lambda features, song: features.brightness > audio_features.BRIGHT_THRESHOLD_DB,
        0.85,
    ),
    PromptAttribute(
        "major or minor",
        "mood",
        lambda song: song.mode == "major",
        lambda features, song: features.mode > audio_features.MAJOR_THRESHOLD,
        0.75,
        required=False,
    ),
    PromptAttribute(
        "tempo in bpm",
        "bpm",
        lambda song: True,
        lambda features, song: _is_near_tempo(features.tempo, song.tempo),
        0.60,
        required=False,
    ),
)


@dataclass(slots=True)
class Tally:
    """Counts of correct and of all clips."""

    correct: int = 0
    total: int = 0

    def count(self, is_correct: bool) -> None:
        """Count one clip."""
        self.correct, self.total = self.correct + int(is_correct), self.total + 1

    @property
    def accuracy(self) -> float:
        """Share of correct clips, 0 to 1; NaN without clips."""
        return self.correct / self.total if self.total else math.nan


@dataclass(slots=True)
class Result:
    """The figures of one evaluation.

    Attributes:
        feature_accuracy: accuracy of each detection on the renderer's audio.
        caption_accuracy: the renderer's audio compared with its captions, which round tempos; the upper bound.
        codec_agreement: detections that are the same before and after the codec.
        si_sdr: mean SI-SDR of the codec in dB.
        log_mel: mean log-mel distance of the codec in dB.
        guided: generated clips compared with their captions, at cfg_coef 3.
        chance: the same clips, each compared with the caption of the clip before.
        unguided: generated clips at cfg_coef 1.
        clips: number of clips.
        faults: number of clips with each fault.
        max_flatness, flatness_limit: largest spectral flatness of a clip, and of the renderer's clips.
        realtime_factor: seconds of audio per second of computing, for one clip of 10 s.
    """

    feature_accuracy: dict[str, Tally] = field(default_factory=lambda: {a.name: Tally() for a in ATTRIBUTES})
    caption_accuracy: dict[str, Tally] = field(default_factory=lambda: {a.name: Tally() for a in ATTRIBUTES})
    codec_agreement: dict[str, Tally] = field(default_factory=lambda: {a.name: Tally() for a in ATTRIBUTES})
    si_sdr: float = math.nan
    log_mel: float = math.nan
    guided: dict[str, Tally] = field(default_factory=lambda: {a.name: Tally() for a in ATTRIBUTES})
    chance: dict[str, Tally] = field(default_factory=lambda: {a.name: Tally() for a in ATTRIBUTES})
    unguided: dict[str, Tally] = field(default_factory=lambda: {a.name: Tally() for a in ATTRIBUTES})
    clips: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    max_flatness: float = 0.0
    flatness_limit: float = 0.0
    realtime_factor: float = math.nan


def draw_examples(count: int, seed: int = SEED) -> list[tuple[Song, Caption, Samples]]:
    """Draw songs with captions, and render them."""
    songs = [draw_song(np.random.default_rng([seed, number])) for number in range(count)]
    progress = tqdm(songs, desc="rendering", disable=None)
    return [
        (song, caption(song, np.random.default_rng([seed, 1, n])), render(song, SECONDS))
        for n, song in enumerate(progress)
    ]


def held_out_songs(plan: Plan) -> list[Song]:
    """Return the songs that the plan's model was not trained on."""
    return list(shuffled_songs(plan.seed)[plan.songs :])


def evaluate(model: Path | str, codec: Any, clips: int = CLIPS, seed: int = SEED) -> Result:
    """Run the whole evaluation; takes a few minutes on two cores.

    Args:
        model: a folder in the released format, or a model's name.
        codec: the codec, as AudioCraft builds it.
        clips: number of clips at each guidance.
        seed: of the songs, captions and clips.
    """
    result, songs = Result(clips=clips), draw_examples(clips, seed)
    evaluate_features(result, songs)
    noisiest = tqdm(noisiest_songs(), desc="noise", disable=None)
    result.flatness_limit = max(flatness(render(song, SECONDS)) for song in noisiest)
    evaluate_codec(result, held_out_songs(Plan()), codec)
    with musicgen_bento.pipeline(str(model)) as pipe:
        _evaluate_generation(result, songs, pipe, seed)
        pipe("piano", duration=2.0)  # warm-up
        started = time.monotonic()
        pipe("lofi hip hop with drums and electric piano", duration=10.0, seed=1)
        result.realtime_factor = 10 / (time.monotonic() - started)
    return result


def noisiest_songs() -> list[Song]:
    """Return the songs that include the renderer's noisiest ones."""
    return [song for song in SONGS if song.drums and song.register == "high" and song.brightness > 0.5]


def evaluate_features(result: Result, songs: Sequence[tuple[Song, Caption, Samples]]) -> None:
    """Fill in the accuracy of the features on the renderer's audio."""
    for song, song_caption, wav in tqdm(songs, desc="features", disable=None):
        features = audio_features.extract_features(wav)
        _count_attributes(result.caption_accuracy, song, song_caption, features)
        for attribute in ATTRIBUTES:
            expected = attribute.expected(song)
            if expected is not None:
                result.feature_accuracy[attribute.name].count(attribute.detected(features, song) == expected)


def evaluate_codec(result: Result, songs: Sequence[Song], codec: Any) -> None:
    """Fill in the agreement of features before and after the codec, and the codec's errors."""
    ratios, distances = [], []
    for song in tqdm(songs, desc="codec", disable=None):
        wav = render(song, SECONDS)
        after = encode_decode(codec, wav)
        first, second = audio_features.extract_features(wav), audio_features.extract_features(after)
        ratios.append(si_sdr(after, wav))
        distances.append(log_mel_distance(after, wav))
        for attribute in ATTRIBUTES:
            if attribute.expected(song) is not None:
                same = attribute.detected(first, song) == attribute.detected(second, song)
                result.codec_agreement[attribute.name].count(same)
    result.si_sdr, result.log_mel = float(np.mean(ratios)), float(np.mean(distances))


def _evaluate_generation(result: Result, songs: Sequence[tuple[Song, Caption, Samples]], pipe: Any, seed: int) -> None:
    all_features: list[AudioFeatures] = []
    for guidance, tallies in ((3.0, result.guided), (1.0, result.unguided)):
        for begin in tqdm(range(0, len(songs), BATCH_SIZE), desc=f"generating, cfg_coef {guidance:g}", disable=None):
            batch = songs[begin : begin + BATCH_SIZE]
            out = pipe(
                [song_caption.text for _, song_caption, _ in batch],
                duration=SECONDS,
                seed=1_000_000 * seed + begin,
                cfg_coef=guidance,
                normalize="none",
            )
            for (song, song_caption, _), wav in zip(batch, out.audios, strict=True):
                features = audio_features.extract_features(wav[0])
                _count_attributes(tallies, song, song_caption, features)
                if guidance == 3.0:
                    _count_faults(result, wav[0])
                    all_features.append(features)
    for (song, song_caption, _), features in zip(songs, all_features[1:] + all_features[:1], strict=True):
        _count_attributes(result.chance, song, song_caption, features)


def _count_attributes(tallies: dict[str, Tally], song: Song, song_caption: Caption, features: AudioFeatures) -> None:
    song = replace(song, tempo=song_caption.bpm or song.tempo)
    for attribute in ATTRIBUTES:
        expected = attribute.expected(song)
        if attribute.caption_topic in song_caption.topics and expected is not None:
            tallies[attribute.name].count(attribute.detected(features, song) == expected)


def _count_faults(result: Result, wav: Samples) -> None:
    level = 20 * math.log10(max(float(np.sqrt(np.mean(wav**2))), 1e-9))
    flat = flatness(wav)
    result.max_flatness = max(result.max_flatness, flat)
    faults = {
        "not a number": not np.isfinite(wav).all(),
        # the server attenuates clips louder than full scale until their peak is at full scale
        "louder than full scale": float(np.abs(wav).max()) > 1 - 1e-6,
        "RMS outside -32 to -10 dBFS": not -32 <= level <= -10,
        "silent for over a second": longest_silence(wav) > 1.0,
        "flatter than the renderer's noisiest": flat > result.flatness_limit,
    }
    for fault, present in faults.items():
        result.faults[fault] = result.faults.get(fault, 0) + int(present)


@torch.no_grad()
def encode_decode(codec: Any, wav: Samples) -> Samples:
    """Encode and decode a clip [T]."""
    codes, scale = codec.encode(torch.from_numpy(wav)[None, None])
    output: Samples = codec.decode(codes, scale)[0, 0, : len(wav)].numpy()
    return output


def si_sdr(output: Samples, wav: Samples) -> float:
    """Return the scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    a, b = output - output.mean(), wav - wav.mean()
    target = (a @ b) / max(float(b @ b), 1e-12) * b
    return float(10 * np.log10((target @ target + 1e-12) / ((a - target) @ (a - target) + 1e-12)))


def log_mel_distance(output: Samples, wav: Samples) -> float:
    """Return the mean absolute difference of 64 mel bands in dB, with a floor 60 dB below the loudest."""
    import librosa

    bands = [
        librosa.feature.melspectrogram(y=x, sr=SAMPLE_RATE, n_fft=2048, hop_length=512, n_mels=64)
        for x in (output, wav)
    ]
    top = max(float(bands[1].max()), 1e-9)
    decoded, original = (10 * np.log10(np.maximum(band / top, 1e-6)) for band in bands)
    return float(np.abs(decoded - original).mean())


def flatness(wav: Samples) -> float:
    """Return the flatness of the mean spectrum, geometric over arithmetic mean: 0 for a tone, 1 for white noise."""
    _, magnitudes = audio_features.spectrogram(wav)
    power = (magnitudes**2).mean(axis=1) + 1e-14
    return float(np.exp(np.log(power).mean()) / power.mean())


def longest_silence(wav: Samples) -> float:
    """Return the longest time below -60 dBFS in seconds, measured in windows of 20 ms."""
    windows = wav[: len(wav) // 640 * 640].reshape(-1, 640)
    quiet = np.sqrt((windows**2).mean(axis=1)) < 1e-3
    longest = run = 0
    for silent in quiet:
        run = run + 1 if silent else 0
        longest = max(longest, run)
    return longest * 0.02
