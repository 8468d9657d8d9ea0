"""Songs: their attributes, and the notes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product, starmap

import numpy as np
from numpy.typing import NDArray

# Steps of a scale, in semitones.
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Degrees of the chords, a progression for each of a style's tunes. The tonic comes first and often, so that the mode
# of a short clip is recognizable.
TWO_CHORDS = (0, 3)  # for short parts; with the fourth, the mode detector finds the tonic best
PROGRESSIONS = {"major": ((0, 3, 4, 0), (0, 4, 0, 3)), "minor": ((0, 3, 4, 0), (0, 5, 4, 0))}
TONICS = {"major": 0, "minor": 9}  # relative keys, so that a model learns few notes
STEPS_PER_BEAT = 4
# Beats a minute, 62 to 188. Half beats are whole numbers of codec frames, so that repetitions have the same tokens.
# There are few tempos, so that each occurs often enough to be learnt.
TEMPOS = tuple(round(1_500 / frames) for frames in (24, 20, 16, 12, 10, 8))
SLOW, FAST = 85, 140  # beats a minute: slow songs are below, fast ones above
# Lowest pitches as MIDI numbers; each part stays within the octave from there.
CHORDS_FROM = {"low": 45, "middle": 52, "high": 62}
MELODY_FROM = {"low": 52, "middle": 60, "high": 68}
BASS_FROM = 33


@dataclass(frozen=True, slots=True)
class Style:
    """A genre: tempo range, instruments, tunes and drum pattern.

    Attributes:
        tempo: lowest and highest usual tempo, in beats a minute.
        chords, melody: their instruments.
        drums: probability of drums.
        tunes: melodies. Each alternates two half bars (two bars of a waltz), with a sign for each half beat: a degree
            over the chord, `-` a held note, `.` a rest.
        pattern: hits by drum, a string of STEPS_PER_BEAT * beats characters: `x` a hit, `.` none.
        beats: beats of a bar.
        arpeggio: whether chords are played as arpeggios.
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
    """The attributes of a song.

    Attributes:
        register: `low`, `middle` or `high`; high songs have no bass.
        brightness: 0 (dark) to 1 (bright).
        tune: index of a tune of its style.
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
    """A note of an instrument, or a drum hit (pitch 0). Times are in seconds."""

    instrument: str
    pitch: int
    start: float
    length: float
    level: float


REGISTERS = {"low": 0.3, "middle": 0.4, "high": 0.3}  # probability of each
# All songs. There are few, so that a small model can learn each combination. From 10,000 songs with more instruments,
# keys and random melodies it learnt too little, before a part repeated, to keep the beat.
SONGS = tuple(starmap(Song, product(STYLES, TEMPOS, ("major", "minor"), REGISTERS, (0.0, 1.0), (False, True), (0, 1))))


def song_frequency(song: Song) -> float:
    """Return the relative frequency of a song. Its style decides most; extremes stay frequent enough."""
    style = STYLES[song.style]
    usual = [tempo for tempo in TEMPOS if _is_usual_tempo(style, tempo)]
    tempo = 0.7 * (song.tempo in usual) / len(usual) + 0.3 / len(TEMPOS)
    drums = 0.7 * style.drums + 0.3 * 0.5
    return tempo * (drums if song.drums else 1 - drums) * REGISTERS[song.register]


@lru_cache(maxsize=1)
def _probabilities() -> NDArray[np.float64]:
    every = np.array([song_frequency(song) for song in SONGS])
    return np.asarray(every / every.sum())


def draw_song(rng: np.random.Generator) -> Song:
    """Draw a song by its frequency."""
    return SONGS[int(rng.choice(len(SONGS), p=_probabilities()))]


def nearest_tempo(tempo: int) -> int:
    """Return the nearest of TEMPOS."""
    return min(TEMPOS, key=lambda other: abs(other - tempo))


def half_beat(tempo: int) -> int:
    """Return the length of half a beat in codec frames."""
    return round(1_500 / tempo)


def surprises(song: Song) -> frozenset[str]:
    """Return the attributes that are unusual for the style: `drums` (present or absent) and `tempo`."""
    style, unusual = STYLES[song.style], set()
    if style.drums < 0.25 if song.drums else style.drums > 0.75:
        unusual.add("drums")
    if not _is_usual_tempo(style, song.tempo):
        unusual.add("tempo")
    return frozenset(unusual)


def _is_usual_tempo(style: Style, tempo: int) -> bool:
    return nearest_tempo(style.tempo[0]) <= tempo <= nearest_tempo(style.tempo[1])


def compose(song: Song, seconds: float) -> list[Note]:
    """Return the notes of a song. Slow songs have long notes, fast ones short notes.

    A song is a loop of about four seconds, because repetition within a clip lets a model keep the beat.
    """
    style = STYLES[song.style]
    step = half_beat(song.tempo) / 100
    bar = style.beats * STEPS_PER_BEAT
    waltz = style.beats == 3
    long = song.tempo > (FAST if waltz else SLOW)
    progression = PROGRESSIONS[song.mode][song.tune] if long else TWO_CHORDS
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
    """Return a degree's pitch in the octave from `lowest`; `raised` gives a minor key's dominant its leading tone."""
    shift = int(raised and song.mode == "minor" and degree % 7 == 6)
    above = TONICS[song.mode] + SCALES[song.mode][degree % 7] + shift - lowest
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
            Note(style.chords, pitch, begin + beat * STEPS_PER_BEAT * step, STEPS_PER_BEAT * step, 0.45)
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
    """Return the notes of a tune. Slow songs drop notes off the beat; fast songs repeat held notes."""
    signs = [sign if at % 2 == 0 else "-" for at, sign in enumerate(tune)] if song.tempo < SLOW else list(tune)
    notes: list[tuple[int, int, str]] = []  # start and length in half beats, sign
    for at, sign in enumerate(signs):
        if sign != "-":
            notes.append((at, 1, sign))
        elif song.tempo > FAST:
            notes.append((at, 1, notes[-1][2]))
        else:
            first, length, held = notes.pop()
            notes.append((first, length + 1, held))
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
    """Return the drum hits of a bar. Slow songs drop hits off the beat and have the hat on every beat."""
    pattern = STYLES[song.style].pattern
    if song.tempo < SLOW:
        on_beats = {
            drum: "".join(row[at] + "..." for at in range(0, len(row), STEPS_PER_BEAT)) for drum, row in pattern.items()
        }
        pattern = on_beats | {"hat": "x..." * STYLES[song.style].beats}
    return [
        Note(drum, 0, begin + at * step, 0.1, 0.9)
        for drum, row in pattern.items()
        for at, sign in enumerate(row)
        if sign == "x"
    ]
