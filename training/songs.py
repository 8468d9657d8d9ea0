"""Songs: what a clip is to be, and the notes that make it so."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product, starmap

import numpy as np
from numpy.typing import NDArray

# Steps of a scale, in semitones.
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Degrees of the chords, a progression for each of a style's tunes. The tonic comes first and often: a clip is short,
# and its mode is to be heard.
PAIR = (0, 3)  # of two chords; the meter of mode hears with the fourth best which tonic it is
PROGRESSIONS = {"major": ((0, 3, 4, 0), (0, 4, 0, 3)), "minor": ((0, 3, 4, 0), (0, 5, 4, 0))}
TONICS = {"major": 0, "minor": 9}  # relatives, so that few notes are to be learnt
STEPS = 4  # a beat
# Beats a minute, 62 to 188. Their half beats are whole numbers of the codec's frames, so that what a song repeats has
# the same tokens again; and they are few, so that each is heard often enough to be kept.
TEMPOS = tuple(round(1_500 / frames) for frames in (24, 20, 16, 12, 10, 8))
SLOW, FAST = 85, 140  # beats a minute: below, above
# Lowest pitches, MIDI numbers; each part keeps to the octave from there.
CHORDS_FROM = {"low": 45, "middle": 52, "high": 62}
MELODY_FROM = {"low": 52, "middle": 60, "high": 68}
BASS_FROM = 33


@dataclass(frozen=True, slots=True)
class Style:
    """A genre: how fast, with what, which tunes, and how the drums go.

    Attributes:
        tempo: lowest and highest, in beats a minute.
        chords, melody: instruments that play them.
        drums: chance of drums.
        tunes: melodies. Each is two halves of bars (a waltz's: two bars) in turn, a sign for each half beat: a degree
            over the chord, `-` what goes on, `.` a rest.
        pattern: hits by drum, a string of STEPS * beats places: `x` hit, `.` none.
        beats: a bar's.
        arpeggio: whether the chords are broken.
    """

    tempo: tuple[int, int]
    chords: str
    melody: str
    drums: float
    tunes: tuple[tuple[str, str], tuple[str, str]]
    pattern: dict[str, str]
    beats: int = 4
    arpeggio: bool = False


STYLES: dict[str, Style] = {
    "ambient": Style(
        (60, 84),
        "pad",
        "bells",
        0.05,
        (("0---", "4---"), ("4---", "2-0-")),
        {"kick": "x.......x.......", "hat": "..x...x...x...x."},
    ),
    "techno": Style(
        (122, 145),
        "lead",
        "plucked",
        0.95,
        (("0402", "0424"), ("0.00", "4.20")),
        {"kick": "x...x...x...x...", "hat": "..x...x...x...x.", "clap": "....x.......x..."},
        arpeggio=True,
    ),
    "lofi": Style(
        (68, 92),
        "electric piano",
        "flute",
        0.85,
        (("42-0", "2---"), ("0-24", "4-0-")),
        {"kick": "x.....x...x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ),
    "cinematic": Style(
        (62, 120),
        "strings",
        "piano",
        0.3,
        (("0-4-", "2---"), ("4---", "0-2-")),
        {"kick": "x.......x.......", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ),
    "rock": Style(
        (112, 165),
        "organ",
        "lead",
        0.95,
        (("0042", "4420"), ("02-4", "2-00")),
        {"kick": "x.....x.x.......", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ),
    "waltz": Style(
        (84, 165),
        "piano",
        "strings",
        0.1,
        (("0-2-4-", "4-2-2-"), ("4---2-", "0-----")),
        {"kick": "x...........", "snare": "....x...x...", "hat": "x.x.x.x.x.x."},
        beats=3,
    ),
    "chiptune": Style(
        (118, 165),
        "chip",
        "chip",
        0.6,
        (("0424", "0420"), ("0240", "4202")),
        {"kick": "x...x...x...x...", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
        arpeggio=True,
    ),
    "house": Style(
        (116, 130),
        "organ",
        "piano",
        0.95,
        (("0-42", "0-24"), ("4.42", "2.20")),
        {"kick": "x...x...x...x...", "hat": "..x...x...x...x.", "clap": "....x.......x..."},
    ),
    "folk": Style(
        (70, 135),
        "plucked",
        "flute",
        0.1,
        (("0-24", "4-20"), ("42-0", "2-0-")),
        {"kick": "x.......x.......", "hat": "x.x.x.x.x.x.x.x."},
        arpeggio=True,
    ),
    "jazz": Style(
        (90, 165),
        "piano",
        "electric piano",
        0.7,
        (("4-20", "0-2-"), ("02-4", "42-0")),
        {"kick": "x.......x.......", "hat": "x...x.x.x...x.x.", "snare": "....x.......x..."},
    ),
    "drum and bass": Style(
        (170, 180),
        "pad",
        "lead",
        1.0,
        (("0---", "4-2-"), ("4-0-", "2---")),
        {"kick": "x.........x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    ),
    "music box": Style(
        (60, 120),
        "bells",
        "bells",
        0.05,
        (("0-4-", "2-4-"), ("4-2-", "0-2-")),
        {"kick": "x.......x.......", "hat": "..x...x...x...x."},
        arpeggio=True,
    ),
}


@dataclass(frozen=True, slots=True)
class Song:
    """One clip to be rendered.

    Attributes:
        register: `low`, `high` (which has no bass) or `middle`.
        brightness: 0 dark to 1 bright.
        tune: which of its style's.
    """

    style: str
    tempo: int
    mode: str
    register: str
    brightness: float
    drums: bool
    tune: int


@dataclass(frozen=True, slots=True)
class Note:
    """An event: a pitch of an instrument, or (`pitch` 0) a drum. Times in seconds."""

    instrument: str
    pitch: int
    start: float
    length: float
    level: float


REGISTERS = {"low": 0.3, "middle": 0.4, "high": 0.3}  # and how often
# Every song there is. They are few, so that a small model can learn what comes of each mixture: of 10,000 with more
# instruments, keys and random melodies it knew, before anything came again, too little to keep time.
SONGS = tuple(starmap(Song, product(STYLES, TEMPOS, ("major", "minor"), REGISTERS, (0.0, 1.0), (False, True), (0, 1))))


def chance(song: Song) -> float:
    """How often a song is drawn, beside others: its style decides most, the extremes come up often enough."""
    style = STYLES[song.style]
    usual = [tempo for tempo in TEMPOS if _usual(style, tempo)]
    tempo = 0.7 * (song.tempo in usual) / len(usual) + 0.3 / len(TEMPOS)
    drums = 0.7 * style.drums + 0.3 * 0.5
    return tempo * (drums if song.drums else 1 - drums) * REGISTERS[song.register]


@lru_cache(maxsize=1)
def _chances() -> NDArray[np.float64]:
    every = np.array([chance(song) for song in SONGS])
    return np.asarray(every / every.sum())


def draw_song(rng: np.random.Generator) -> Song:
    """A song at random, by its chance."""
    return SONGS[int(rng.choice(len(SONGS), p=_chances()))]


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
    if not _usual(style, song.tempo):
        found.add("tempo")
    return frozenset(found)


def _usual(style: Style, tempo: int) -> bool:
    return near(style.tempo[0]) <= tempo <= near(style.tempo[1])


def compose(song: Song, seconds: float) -> list[Note]:
    """The notes of a song. Slow ones have long notes, fast ones short ones: that is what makes them so.

    A song is a loop of about four seconds. What comes again within a clip is what a model learns to keep time by.
    """
    style = STYLES[song.style]
    step = half_beat(song.tempo) / 100
    bar = style.beats * STEPS
    waltz = style.beats == 3
    long = song.tempo > (FAST if waltz else SLOW)
    progression = PROGRESSIONS[song.mode][song.tune] if long else PAIR
    part = bar if waltz else bar // 2
    notes: list[Note] = []
    for number in range(int(np.ceil(seconds / (part * step)))):
        degree = progression[number % len(progression)]
        begin = number * part * step
        notes += _chord(song, style, degree, begin, part, step)
        notes += _melody(song, style.tunes[song.tune][number % 2], degree, begin, step)
        if song.register != "high":
            notes += _bass(song, degree, begin, part, step)
        if song.drums and number * part % bar == 0:
            notes += _drums(song, begin, step)
    return [note for note in notes if note.start < seconds - 0.05]


def _pitch(song: Song, degree: int, lowest: int, raised: bool = False) -> int:
    """A degree's pitch in the octave from `lowest` on; `raised` is the leading tone of a minor key's fifth."""
    lift = int(raised and song.mode == "minor" and degree % 7 == 6)
    above = TONICS[song.mode] + SCALES[song.mode][degree % 7] + lift - lowest
    return lowest + above % 12


def _chord(song: Song, style: Style, degree: int, begin: float, part: int, step: float) -> list[Note]:
    triad = sorted(_pitch(song, degree + third, CHORDS_FROM[song.register], degree == 4) for third in (0, 2, 4))
    if style.arpeggio:
        every = 4 if song.tempo < SLOW else 2
        order: tuple[tuple[int, ...], ...] = ((0,), (1, 2)) if song.tempo < SLOW else ((0,), (1,), (2,), (1,))
        return [
            Note(style.chords, triad[tone], begin + i * every * step, every * step, 0.5)
            for i in range(part // every)
            for tone in order[i % len(order)]
        ]
    if style.beats == 3:  # oom-pah-pah
        return [
            Note(style.chords, pitch, begin + beat * STEPS * step, STEPS * step, 0.45)
            for beat in ((0, 1, 2) if song.tempo > FAST else (1, 2))
            for pitch in triad
        ]
    strikes = part // 2 if song.tempo > FAST else 1
    length = part // strikes
    return [
        Note(style.chords, pitch, begin + i * length * step, length * step, 0.42)
        for i in range(strikes)
        for pitch in triad
    ]


def _melody(song: Song, tune: str, degree: int, begin: float, step: float) -> list[Note]:
    """A slow song leaves out what is not on a beat; a fast one strikes again what goes on."""
    signs = [sign if at % 2 == 0 else "-" for at, sign in enumerate(tune)] if song.tempo < SLOW else list(tune)
    notes: list[tuple[int, int, str]] = []  # at, length in half beats, sign
    for at, sign in enumerate(signs):
        if sign != "-":
            notes.append((at, 1, sign))
        elif song.tempo > FAST:
            notes.append((at, 1, notes[-1][2]))
        else:
            first, length, going_on = notes.pop()
            notes.append((first, length + 1, going_on))
    return [
        Note(
            STYLES[song.style].melody,
            _pitch(song, degree + int(above), MELODY_FROM[song.register], degree == 4),
            begin + 2 * at * step,
            2 * length * step,
            0.8,
        )
        for at, length, above in notes
        if above != "."
    ]


def _bass(song: Song, degree: int, begin: float, part: int, step: float) -> list[Note]:
    root = _pitch(song, degree, BASS_FROM)
    every = 8 if song.tempo < SLOW else 4 if song.tempo < FAST else 2
    return [Note("bass", root, begin + at * step, 0.9 * every * step, 0.9) for at in range(0, part, every)]


def _drums(song: Song, begin: float, step: float) -> list[Note]:
    """A bar of them. In a slow song what is not on a beat is left out, and the hat is on every beat."""
    pattern = STYLES[song.style].pattern
    if song.tempo < SLOW:
        on_beats = {drum: "".join(row[at] + "..." for at in range(0, len(row), STEPS)) for drum, row in pattern.items()}
        pattern = on_beats | {"hat": "x..." * STYLES[song.style].beats}
    return [
        Note(drum, 0, begin + at * step, 0.1, 0.9)
        for drum, row in pattern.items()
        for at, place in enumerate(row)
        if place == "x"
    ]
