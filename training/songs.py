"""Songs: what a clip is to be, and the notes that make it so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Steps of a scale, in semitones.
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Degrees of the chords, one a bar.
PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 3, 4, 0), (0, 5, 3, 4), (0, 3, 0, 4)),
    "minor": ((0, 5, 2, 6), (0, 3, 4, 0), (0, 5, 3, 4), (0, 6, 5, 6)),
}
STEPS = 4  # a beat


@dataclass(frozen=True, slots=True)
class Style:
    """A genre: how fast, with what, and how the drums go.

    Attributes:
        tempo: lowest and highest, in beats a minute.
        chords, melodies: instruments that play them.
        drums: chance of drums.
        beats: a bar's.
        pattern: hits by drum, a string of STEPS * beats places: `x` hit, `.` none.
        arpeggio: whether the chords are broken.
    """

    tempo: tuple[int, int]
    chords: tuple[str, ...]
    melodies: tuple[str, ...]
    drums: float
    pattern: dict[str, str]
    beats: int = 4
    arpeggio: bool = False


STYLES: dict[str, Style] = {
    "ambient": Style((60, 84), ("pad", "strings"), ("bells", "piano", "flute"), 0.0, {}),
    "techno": Style(
        (122, 145),
        ("pad", "lead"),
        ("lead", "plucked"),
        0.95,
        {"kick": "x...x...x...x...", "hat": "..x...x...x...x.", "clap": "....x.......x..."},
        arpeggio=True,
    ),
    "lofi": Style(
        (68, 92),
        ("electric piano", "piano"),
        ("electric piano", "flute", "plucked"),
        0.85,
        {"kick": "x.....x...x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ),
    "cinematic": Style(
        (62, 120),
        ("strings", "pad"),
        ("strings", "piano", "flute"),
        0.3,
        {"kick": "x.......x.......", "snare": "....x.......x..."},
    ),
    "rock": Style(
        (108, 172),
        ("organ", "lead"),
        ("lead", "organ"),
        0.95,
        {"kick": "x.....x.x.......", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ),
    "waltz": Style(
        (84, 180),
        ("piano", "strings"),
        ("piano", "flute", "strings"),
        0.1,
        {"kick": "x...........", "hat": "....x...x..."},
        beats=3,
    ),
    "chiptune": Style(
        (118, 180),
        ("chip",),
        ("chip",),
        0.6,
        {"kick": "x...x...x...x...", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
        arpeggio=True,
    ),
    "house": Style(
        (116, 130),
        ("organ", "electric piano", "pad"),
        ("piano", "lead"),
        0.95,
        {"kick": "x...x...x...x...", "hat": "..x...x...x...x.", "clap": "....x.......x..."},
    ),
    "folk": Style(
        (70, 140),
        ("plucked",),
        ("flute", "plucked"),
        0.1,
        {"kick": "x.......x.......", "hat": "..x.x.x...x.x.x."},
        arpeggio=True,
    ),
    "jazz": Style(
        (90, 180),
        ("piano", "electric piano"),
        ("piano", "flute"),
        0.7,
        {"hat": "x...x.x.x...x.x.", "snare": "....x.......x..."},
    ),
    "drum and bass": Style(
        (160, 180),
        ("pad",),
        ("lead", "bells"),
        1.0,
        {"kick": "x.........x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ),
    "music box": Style((60, 120), ("bells",), ("bells",), 0.0, {}, arpeggio=True),
}


@dataclass(frozen=True, slots=True)
class Song:
    """One clip to be rendered. What is None is left to the style.

    Attributes:
        register: `low`, `high` or `middle`.
        brightness: 0 dark to 1 bright.
    """

    style: str
    tempo: int
    mode: str
    key: int
    chords: str
    melody: str
    drums: bool
    bass: bool
    register: str
    brightness: float


@dataclass(frozen=True, slots=True)
class Note:
    """An event: a pitch of an instrument, or (`pitch` 0) a drum. Times in seconds."""

    instrument: str
    pitch: int
    start: float
    length: float
    level: float


def draw_song(rng: np.random.Generator) -> Song:
    """A song at random: the style decides most, the extremes come up often enough to be learnt."""
    name = str(rng.choice(list(STYLES)))
    style = STYLES[name]
    drums = bool(rng.random() < style.drums)
    register = str(rng.choice(["low", "middle", "high"], p=[0.28, 0.44, 0.28]))
    brightness = float(rng.choice([0.05, 0.5, 0.95], p=[0.3, 0.4, 0.3]))
    low, high = style.tempo
    return Song(
        style=name,
        tempo=int(rng.integers(low, high + 1)),
        mode=str(rng.choice(["major", "minor"])),
        key=int(rng.integers(0, 12)),
        chords=str(rng.choice(style.chords)),
        melody=str(rng.choice(style.melodies)),
        drums=drums,
        bass=register == "low" or (register == "middle" and bool(rng.random() < 0.6)),
        register=register,
        brightness=brightness,
    )


def compose(song: Song, seconds: float, rng: np.random.Generator) -> list[Note]:
    """The notes of a song."""
    style = STYLES[song.style]
    step = 60 / song.tempo / STEPS
    bar = style.beats * STEPS
    progression = PROGRESSIONS[song.mode][int(rng.integers(len(PROGRESSIONS[song.mode])))]
    bars = int(np.ceil(seconds / (bar * step)))
    riff = _riff(bar, rng)
    notes: list[Note] = []
    for number in range(bars):
        degree = progression[number % len(progression)]
        begin = number * bar * step
        notes += _chord(song, style, degree, begin, bar, step)
        notes += _melody(song, riff if number % 4 != 3 else _riff(bar, rng), degree, begin, step)
        if song.bass:
            notes += _bass(song, degree, begin, bar, step)
        if song.drums:
            notes += _drums(style, begin, step, rng)
    return [note for note in notes if note.start < seconds - 0.05]


def _pitch(song: Song, degree: int, octave: int) -> int:
    scale = SCALES[song.mode]
    return 12 * (octave + degree // 7) + song.key + scale[degree % 7]


def _octave(song: Song, base: int) -> int:
    return base + {"low": -1, "middle": 0, "high": 1}[song.register]


def _chord(song: Song, style: Style, degree: int, begin: float, bar: int, step: float) -> list[Note]:
    triad = [_pitch(song, degree + third, _octave(song, 4)) for third in (0, 2, 4)]
    if style.arpeggio:
        every = 2
        order = [0, 1, 2, 1]
        return [
            Note(song.chords, triad[order[i % 4]], begin + i * every * step, every * step, 0.5)
            for i in range(bar // every)
        ]
    if style.beats == 3:  # oom-pah-pah
        return [
            Note(song.chords, pitch, begin + beat * STEPS * step, STEPS * step, 0.45)
            for beat in (1, 2)
            for pitch in triad
        ]
    return [Note(song.chords, pitch, begin, bar * step, 0.42) for pitch in triad]


def _riff(bar: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """A bar of melody: (step, length in steps, degree over the chord)."""
    riff, at, degree = [], 0, int(rng.choice([0, 2, 4]))
    while at < bar:
        length = int(rng.choice([2, 4, 4, 6]))
        if rng.random() < 0.85:
            riff.append((at, min(length, bar - at), degree))
        degree = int(np.clip(degree + rng.choice([-2, -1, 1, 2]), -2, 7))
        at += length
    return riff


def _melody(song: Song, riff: list[tuple[int, int, int]], degree: int, begin: float, step: float) -> list[Note]:
    return [
        Note(song.melody, _pitch(song, degree + above, _octave(song, 5)), begin + at * step, length * step, 0.8)
        for at, length, above in riff
    ]


def _bass(song: Song, degree: int, begin: float, bar: int, step: float) -> list[Note]:
    root = _pitch(song, degree, 3)
    root -= 12 if root > 52 else 0
    return [Note("bass", root, begin + at * step, 3.5 * step, 0.9) for at in range(0, bar, 4)]


def _drums(style: Style, begin: float, step: float, rng: np.random.Generator) -> list[Note]:
    return [
        Note(drum, 0, begin + at * step, 0.1, float(rng.uniform(0.8, 1.0)))
        for drum, pattern in style.pattern.items()
        for at, place in enumerate(pattern)
        if place == "x"
    ]
