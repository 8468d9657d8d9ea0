"""What the built-in model can do, by the meters, on captions drawn anew.

Songs are few: most of those that the captions are of were learnt from, in other words. The codec is judged on those
that were not.
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
from training import meters
from training.captions import Caption, caption, colour, speed
from training.dataset import order
from training.meters import Reading
from training.plan import SAMPLE_RATE, Plan
from training.render import render
from training.songs import SONGS, Song, draw_song

SEED = 10  # of the captions: nothing was trained or chosen by what came of them
SECONDS = 8.0
CLIPS = 200
AT_ONCE = 12
Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Question:
    """One thing that a prompt may ask for, and how to hear whether it came.

    Attributes:
        name: in the table.
        says: what a caption must speak of for it to be asked.
        wanted: of a song: True or False for one side or the other, None where it is in between.
        heard: of a reading: which side it is on.
        bar: the share of clips that should be right.
        must: whether the bar is to be met; else it is an aim.
    """

    name: str
    says: str
    wanted: Callable[[Song], bool | None]
    heard: Callable[[Reading, Song], bool]
    bar: float
    must: bool = True


def _of(value: str, yes: str, no: str) -> bool | None:
    return {yes: True, no: False}.get(value)


def _near(tempo: float, wanted: float) -> bool:
    return any(abs(tempo * factor / wanted - 1) < 0.08 for factor in (0.5, 1, 2))


QUESTIONS = (
    Question("drums or none", "drums", lambda s: s.drums, lambda r, s: r.percussion > meters.DRUMS, 0.95),
    Question("slow or fast", "tempo", lambda s: _of(speed(s), "fast", "slow"), lambda r, s: r.pace > meters.FAST, 0.90),
    Question(
        "bass or high",
        "register",
        lambda s: _of(s.register, "high", "low"),
        lambda r, s: r.register > meters.HIGH,
        0.90,
    ),
    Question(
        "dark or bright",
        "colour",
        lambda s: _of(colour(s), "bright", "dark"),
        lambda r, s: r.brightness > meters.BRIGHT,
        0.85,
    ),
    Question(
        "major or minor",
        "mood",
        lambda s: s.mode == "major",
        lambda r, s: r.mode > meters.MAJOR,
        0.75,
        must=False,
    ),
    Question("tempo in bpm", "bpm", lambda s: True, lambda r, s: _near(r.tempo, s.tempo), 0.60, must=False),
)


@dataclass(slots=True)
class Tally:
    """How often an answer was right."""

    right: int = 0
    asked: int = 0

    def count(self, right: bool) -> None:
        """One more."""
        self.right, self.asked = self.right + int(right), self.asked + 1

    @property
    def share(self) -> float:
        """Of the right ones, 0 to 1; NaN where none was asked."""
        return self.right / self.asked if self.asked else math.nan


@dataclass(slots=True)
class Result:
    """All figures of one evaluation.

    Attributes:
        meters: how often each question's meter is right on the renderer's own audio.
        songs: the songs themselves held against their captions, which round tempos: as good as it gets.
        codec_agrees: how often a meter reads the same before and after the codec.
        si_sdr: of the codec, dB, mean.
        log_mel: of the codec, mean distance in dB.
        obeyed: by question, at cfg_coef 3.
        chance: the same clips, each held against the caption before its own.
        loosely: the same clips at cfg_coef 1.
        broken: by fault, of `clips`.
        flattest, flatness_bar: largest spectral flatness of a clip, and of the renderer's clips.
        real_time: seconds of audio made in a second, one clip of 10 s.
    """

    meters: dict[str, Tally] = field(default_factory=lambda: {q.name: Tally() for q in QUESTIONS})
    songs: dict[str, Tally] = field(default_factory=lambda: {q.name: Tally() for q in QUESTIONS})
    codec_agrees: dict[str, Tally] = field(default_factory=lambda: {q.name: Tally() for q in QUESTIONS})
    si_sdr: float = math.nan
    log_mel: float = math.nan
    obeyed: dict[str, Tally] = field(default_factory=lambda: {q.name: Tally() for q in QUESTIONS})
    chance: dict[str, Tally] = field(default_factory=lambda: {q.name: Tally() for q in QUESTIONS})
    loosely: dict[str, Tally] = field(default_factory=lambda: {q.name: Tally() for q in QUESTIONS})
    clips: int = 0
    broken: dict[str, int] = field(default_factory=dict)
    flattest: float = 0.0
    flatness_bar: float = 0.0
    real_time: float = math.nan


def drawn(count: int, seed: int = SEED) -> list[tuple[Song, Caption, Samples]]:
    """Songs with a caption each, and as they sound."""
    songs = [draw_song(np.random.default_rng([seed, number])) for number in range(count)]
    bar = tqdm(songs, desc="rendering", disable=None)
    return [
        (song, caption(song, np.random.default_rng([seed, 1, n])), render(song, SECONDS)) for n, song in enumerate(bar)
    ]


def unheard(plan: Plan) -> list[Song]:
    """The songs that the plan's model did not learn from."""
    return list(order(plan.seed)[plan.songs :])


def evaluate(model: Path | str, codec: Any, clips: int = CLIPS, seed: int = SEED) -> Result:
    """Everything, in some minutes on two cores.

    Args:
        model: a folder in the released format, or a model's name.
        codec: its codec, as AudioCraft builds it.
        clips: how many to make at each guidance.
        seed: of the songs and captions, and with it of the clips.
    """
    result, songs = Result(clips=clips), drawn(clips, seed)
    judge_meters(result, songs)
    result.flatness_bar = max(flatness(render(song, SECONDS)) for song in tqdm(noisiest(), desc="noise", disable=None))
    judge_codec(result, unheard(Plan()), codec)
    with musicgen_bento.pipeline(str(model)) as pipe:
        _judge_music(result, songs, pipe, seed)
        pipe("piano", duration=2.0)  # warm
        begin = time.monotonic()
        pipe("lofi hip hop with drums and electric piano", duration=10.0, seed=1)
        result.real_time = 10 / (time.monotonic() - begin)
    return result


def noisiest() -> list[Song]:
    """The kinds of songs that the renderer's noisiest is among."""
    return [song for song in SONGS if song.drums and song.register == "high" and song.brightness > 0.5]


def judge_meters(result: Result, songs: Sequence[tuple[Song, Caption, Samples]]) -> None:
    """Fill in what the meters read of the songs themselves."""
    for song, said, wav in tqdm(songs, desc="meters", disable=None):
        reading = meters.read(wav)
        _ask(result.songs, song, said, reading)
        for question in QUESTIONS:
            wanted = question.wanted(song)
            if wanted is not None:
                result.meters[question.name].count(question.heard(reading, song) == wanted)


def judge_codec(result: Result, songs: Sequence[Song], codec: Any) -> None:
    """Fill in what the meters read of songs before and after the codec, and how near those are."""
    ratios, distances = [], []
    for song in tqdm(songs, desc="codec", disable=None):
        wav = render(song, SECONDS)
        after = through(codec, wav)
        first, second = meters.read(wav), meters.read(after)
        ratios.append(si_sdr(after, wav))
        distances.append(log_mel_distance(after, wav))
        for question in QUESTIONS:
            if question.wanted(song) is not None:
                same = question.heard(first, song) == question.heard(second, song)
                result.codec_agrees[question.name].count(same)
    result.si_sdr, result.log_mel = float(np.mean(ratios)), float(np.mean(distances))


def _judge_music(result: Result, songs: Sequence[tuple[Song, Caption, Samples]], pipe: Any, seed: int) -> None:
    readings: list[Reading] = []
    for guidance, tallies in ((3.0, result.obeyed), (1.0, result.loosely)):
        for begin in tqdm(range(0, len(songs), AT_ONCE), desc=f"music, cfg_coef {guidance:g}", disable=None):
            some = songs[begin : begin + AT_ONCE]
            out = pipe(
                [said.text for _, said, _ in some],
                duration=SECONDS,
                seed=1_000_000 * seed + begin,
                cfg_coef=guidance,
                normalize="none",
            )
            for (song, said, _), wav in zip(some, out.audios, strict=True):
                reading = meters.read(wav[0])
                _ask(tallies, song, said, reading)
                if guidance == 3.0:
                    _look_for_faults(result, wav[0])
                    readings.append(reading)
    for (song, said, _), reading in zip(songs, readings[1:] + readings[:1], strict=True):
        _ask(result.chance, song, said, reading)


def _ask(tallies: dict[str, Tally], song: Song, said: Caption, reading: Reading) -> None:
    song = replace(song, tempo=said.bpm or song.tempo)
    for question in QUESTIONS:
        wanted = question.wanted(song)
        if question.says in said.says and wanted is not None:
            tallies[question.name].count(question.heard(reading, song) == wanted)


def _look_for_faults(result: Result, wav: Samples) -> None:
    level = 20 * math.log10(max(float(np.sqrt(np.mean(wav**2))), 1e-9))
    flat = flatness(wav)
    result.flattest = max(result.flattest, flat)
    faults = {
        "not a number": not np.isfinite(wav).all(),
        # a clip that is louder than full scale has been turned down until its peak is there
        "louder than full scale": float(np.abs(wav).max()) > 1 - 1e-6,
        "RMS outside -32 to -10 dBFS": not -32 <= level <= -10,
        "silent for over a second": longest_silence(wav) > 1.0,
        "flatter than the renderer's noisiest": flat > result.flatness_bar,
    }
    for fault, there in faults.items():
        result.broken[fault] = result.broken.get(fault, 0) + int(there)


@torch.no_grad()
def through(codec: Any, wav: Samples) -> Samples:
    """A clip [T], encoded and decoded."""
    codes, scale = codec.encode(torch.from_numpy(wav)[None, None])
    made: Samples = codec.decode(codes, scale)[0, 0, : len(wav)].numpy()
    return made


def si_sdr(made: Samples, wav: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019)."""
    a, b = made - made.mean(), wav - wav.mean()
    target = (a @ b) / max(float(b @ b), 1e-12) * b
    return float(10 * np.log10((target @ target + 1e-12) / ((a - target) @ (a - target) + 1e-12)))


def log_mel_distance(made: Samples, wav: Samples) -> float:
    """Mean absolute difference of 64 mel bands in dB, 60 dB below the loudest at most."""
    import librosa

    bands = [
        librosa.feature.melspectrogram(y=x, sr=SAMPLE_RATE, n_fft=2048, hop_length=512, n_mels=64) for x in (made, wav)
    ]
    top = max(float(bands[1].max()), 1e-9)
    one, other = (10 * np.log10(np.maximum(band / top, 1e-6)) for band in bands)
    return float(np.abs(one - other).mean())


def flatness(wav: Samples) -> float:
    """Spectral flatness, 0 a tone to 1 white noise: the geometric over the arithmetic mean of the mean spectrum."""
    _, magnitudes = meters.spectrogram(wav)
    power = (magnitudes**2).mean(axis=1) + 1e-14
    return float(np.exp(np.log(power).mean()) / power.mean())


def longest_silence(wav: Samples) -> float:
    """Seconds below -60 dBFS in one piece, by windows of 20 ms."""
    windows = wav[: len(wav) // 640 * 640].reshape(-1, 640)
    quiet = np.sqrt((windows**2).mean(axis=1)) < 1e-3
    longest = run = 0
    for silent in quiet:
        run = run + 1 if silent else 0
        longest = max(longest, run)
    return longest * 0.02
