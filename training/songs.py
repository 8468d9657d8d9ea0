"""Songs: what a clip is to be, and the notes that make it so."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Steps of a scale, in semitones.
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Degrees of the chords. The tonic comes first and often: a clip is short, and its mode is to be heard.
PAIRS = {"major": ((0, 4),), "minor": ((0, 4),)}  # of two chords the fifth says best which tonic it is
PROGRESSIONS = {
    "major": ((0, 3, 4, 0), (0, 4, 0, 3), (0, 3, 0, 4), (0, 4, 3, 0)),
    "minor": ((0, 3, 4, 0), (0, 4, 0, 3), (0, 3, 0, 4), (0, 5, 4, 0)),
}
# Tonics: few, so that few notes are to be learnt. Both pairs are relatives.
KEYS = {"major": (0, 7), "minor": (9, 4)}
STEPS = 4  # a beat
# Beats a minute, 62 to 188, about 12% apart: their half beats are whole numbers of the codec's frames, so that what a
# song repeats has the same tokens again; and they are few, so that each is heard often enough to be kept.
TEMPOS = tuple(round(1_500 / frames) for frames in (24, 22, 20, 18, 16, 14, 12, 10, 9, 8))
NO_CHORDS, NO_MELODY = 0.2, 0.15  # shares of songs: what is simple is learnt first
SLOW, FAST = 85, 140  # beats a minute: below, above
# Lowest pitches, MIDI numbers; each part keeps to the octave from there.
CHORDS_FROM = {"low": 45, "middle": 52, "high": 62}
MELODY_FROM = {"low": 52, "middle": 60, "high": 68}
BASS_FROM = 33


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
    "ambient": Style(
        (60, 84),
        ("pad", "strings"),
        ("bells", "piano", "flute"),
        0.05,
        {"kick": "x...............", "hat": "....x.......x..."},
    ),
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
    "music box": Style(
        (60, 120),
        ("bells",),
        ("bells",),
        0.05,
        {"kick": "x.......x.......", "hat": "....x.......x..."},
        arpeggio=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Song:
    """One clip to be rendered.

    Attributes:
        chords, melody: the instruments; at most one of them is empty, and that part is missing.
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
    drums = bool(rng.random() < (style.drums if rng.random() < 0.7 else 0.5))
    register = str(rng.choice(["low", "middle", "high"], p=[0.3, 0.4, 0.3]))
    low, high = style.tempo if rng.random() < 0.7 else (60, 180)
    mode = str(rng.choice(["major", "minor"]))
    alone = float(rng.random())
    return Song(
        style=name,
        tempo=near(int(rng.integers(low, high + 1))),
        mode=mode,
        key=int(rng.choice(KEYS[mode])),
        chords="" if alone < NO_CHORDS else str(rng.choice(style.chords)),
        melody="" if alone > 1 - NO_MELODY else str(rng.choice(style.melodies)),
        drums=drums,
        bass=register == "low" or (register == "middle" and bool(rng.random() < 0.6)),
        register=register,
        brightness=float(rng.choice([0.0, 0.5, 1.0], p=[0.35, 0.3, 0.35])),
    )


def near(tempo: int) -> int:
    """The nearest of TEMPOS."""
    return min(TEMPOS, key=lambda other: abs(other - tempo))


def half_beat(tempo: int) -> int:
    """How many of the codec's frames half a beat lasts."""
    return round(1_500 / tempo)


def surprises(song: Song) -> frozenset[str]:
    """What its style would not make one expect: `drums`, or the lack of them, and `tempo`."""
    style, found = STYLES[song.style], set()
    if style.drums < 0.25 if song.drums else style.drums > 0.75:
        found.add("drums")
    if not near(style.tempo[0]) <= song.tempo <= near(style.tempo[1]):
        found.add("tempo")
    return frozenset(found)


def compose(song: Song, seconds: float, rng: np.random.Generator) -> list[Note]:
    """The notes of a song. Slow ones have long notes, fast ones short ones: that is what makes them so.

    A song is a loop of about four seconds. What comes again within a clip is what a model learns to keep time by.
    """
    style = STYLES[song.style]
    step = half_beat(song.tempo) / 100
    bar = style.beats * STEPS
    waltz = style.beats == 3
    progressions = (PROGRESSIONS if song.tempo > (FAST if waltz else SLOW) else PAIRS)[song.mode]
    progression = progressions[int(rng.integers(len(progressions)))]
    part = bar if waltz else bar // 2
    riffs = [_riff(song, part, rng) for _ in range(2)]
    notes: list[Note] = []
    for number in range(int(np.ceil(seconds / (part * step)))):
        degree = progression[number % len(progression)]
        begin = number * part * step
        if song.chords:
            notes += _chord(song, style, degree, begin, part, step)
        if song.melody:
            notes += _melody(song, riffs[number % 2], degree, begin, step)
        if song.bass:
            notes += _bass(song, degree, begin, part, step)
        if song.drums and number * part % bar == 0:
            notes += _drums(song, begin, step)
    return [note for note in notes if note.start < seconds - 0.05]


def _pitch(song: Song, degree: int, lowest: int, raised: bool = False) -> int:
    """A degree's pitch in the octave from `lowest` on; `raised` is the leading tone of a minor key's fifth."""
    lift = int(raised and song.mode == "minor" and degree % 7 == 6)
    above = song.key + SCALES[song.mode][degree % 7] + lift - lowest
    return lowest + above % 12


def _chord(song: Song, style: Style, degree: int, begin: float, part: int, step: float) -> list[Note]:
    triad = sorted(_pitch(song, degree + third, CHORDS_FROM[song.register], degree == 4) for third in (0, 2, 4))
    lift = 1.0 if song.melody else 1.4
    if style.arpeggio:
        every = 4 if song.tempo < SLOW else 2
        order: tuple[tuple[int, ...], ...] = ((0,), (1, 2)) if song.tempo < SLOW else ((0,), (1,), (2,), (1,))
        return [
            Note(song.chords, triad[tone], begin + i * every * step, every * step, 0.5 * lift)
            for i in range(part // every)
            for tone in order[i % len(order)]
        ]
    if style.beats == 3:  # oom-pah-pah
        return [
            Note(song.chords, pitch, begin + beat * STEPS * step, STEPS * step, 0.45 * lift)
            for beat in ((0, 1, 2) if song.tempo > FAST else (1, 2))
            for pitch in triad
        ]
    strikes = part // 4 if song.tempo > FAST else 1
    length = part // strikes
    return [
        Note(song.chords, pitch, begin + i * length * step, length * step, 0.42 * lift)
        for i in range(strikes)
        for pitch in triad
    ]


def _riff(song: Song, part: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """A chord's melody: (step, length in steps, degree over the chord). Strong places have tones of the chord."""
    lengths = (4, 4, 8) if song.tempo < SLOW else (2, 2, 2, 4) if song.tempo > FAST else (2, 4, 4, 6)
    riff, at, degree = [], 0, int(rng.choice([0, 2, 4]))
    while at < part:
        length = int(rng.choice(lengths))
        if at % 8 == 0:
            degree = int(rng.choice([0, 2, 4]))
        if at == 0 or rng.random() < 0.9 or not song.chords:  # a rest of a melody alone is silence
            riff.append((at, min(length, part - at), degree))
        degree = int(np.clip(degree + rng.choice([-2, -1, 1, 2]), -2, 7))
        at += length
    return riff


def _melody(song: Song, riff: list[tuple[int, int, int]], degree: int, begin: float, step: float) -> list[Note]:
    return [
        Note(
            song.melody,
            _pitch(song, degree + above, MELODY_FROM[song.register], degree == 4),
            begin + at * step,
            length * step,
            0.8 if song.chords else 1.3,
        )
        for at, length, above in riff
    ]


def _bass(song: Song, degree: int, begin: float, part: int, step: float) -> list[Note]:
    root = _pitch(song, degree, BASS_FROM)
    every = 8 if song.tempo < SLOW else 4 if song.tempo < FAST else 2
    return [Note("bass", root, begin + at * step, 0.9 * every * step, 0.9) for at in range(0, part, every)]


def _drums(song: Song, begin: float, step: float) -> list[Note]:
    thin = song.tempo < SLOW  # a hat on the beats alone
    return [
        Note(drum, 0, begin + at * step, 0.1, 0.9)
        for drum, pattern in STYLES[song.style].pattern.items()
        for at, place in enumerate(pattern)
        if place == "x" and not (thin and drum == "hat" and at % 4)
    ]
