"""Captions of songs: some true statements, in words and an order drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.songs import FAST, SLOW, STYLES, TEMPOS, Song, nearest_tempo

GENRES = {
    "ambient": ("ambient", "ambient soundscape", "meditation music", "drone", "sleep music"),
    "techno": ("techno", "techno loop", "rave", "club techno", "electronic dance music"),
    "lofi": ("lofi", "lofi hip hop", "lo-fi beat", "chillhop", "study beats", "hip hop"),
    "cinematic": ("cinematic", "film score", "orchestral cinematic score", "soundtrack", "trailer music"),
    "rock": ("rock", "rock song", "indie rock", "stadium rock"),
    "waltz": ("waltz", "waltz in three four", "ballroom waltz", "classical waltz"),
    "chiptune": ("chiptune", "8-bit game music", "video game music", "retro game", "nintendo style"),
    "house": ("house", "deep house", "house groove", "disco house"),
    "folk": ("folk", "acoustic folk", "folk song", "campfire song"),
    "jazz": ("jazz", "jazz trio", "smooth jazz", "swing"),
    "drum and bass": ("drum and bass", "dnb", "jungle", "breakbeat"),
    "music box": ("music box", "lullaby", "toy music", "nursery rhyme"),
}
INSTRUMENTS = {
    "piano": ("piano", "grand piano", "keys"),
    "electric piano": ("electric piano", "rhodes", "e-piano"),
    "organ": ("organ", "hammond organ", "church organ"),
    "strings": ("strings", "violins", "string section", "orchestra"),
    "pad": ("synth pad", "pad", "soft pads", "atmosphere"),
    "flute": ("flute", "woodwind", "pan flute"),
    "lead": ("synth lead", "saw lead", "synthesizer", "lead synth"),
    "chip": ("square wave", "8-bit lead", "chip sound"),
    "plucked": ("plucked strings", "acoustic guitar", "guitar", "harp"),
    "bells": ("bells", "glockenspiel", "chimes", "celesta"),
}
MOODS = {
    "major": ("happy", "uplifting", "cheerful", "joyful", "hopeful", "in major", "major key"),
    "minor": ("sad", "melancholic", "moody", "mysterious", "tense", "epic", "in minor", "minor key"),
}
SPEEDS = {
    "slow": ("slow", "slow tempo", "calm", "relaxed", "laid back", "gentle"),
    "middle": ("medium tempo", "mid-tempo", "moderate"),
    "fast": ("fast", "fast tempo", "energetic", "driving", "upbeat", "fast-paced"),
}
REGISTERS = {
    "low": ("heavy bass", "deep", "low", "bass-heavy", "low register", "deep bass"),
    "middle": (),
    "high": ("high", "high-pitched", "high register", "airy", "no bass"),
}
COLOURS = {
    "dark": ("dark", "warm", "muffled", "mellow", "dark timbre"),
    "bright": ("bright", "crisp", "shiny", "sparkling", "bright timbre"),
}
DRUMS = {
    True: ("with drums", "drums", "with a beat", "drum beat", "percussion", "punchy drums"),
    False: ("no drums", "without drums", "beatless", "no percussion", "drumless"),
}


def speed(song: Song) -> str:
    """Return the tempo class of captions: slow (under 85 bpm), middle, or fast (over 140 bpm)."""
    return "slow" if song.tempo < SLOW else "fast" if song.tempo > FAST else "middle"


def colour(song: Song) -> str:
    """Return `dark` or `bright`."""
    return "dark" if song.brightness < 0.5 else "bright"


# Numbers that a caption may give for a tempo: those to which the tempo is the nearest.
TEMPO_NUMBERS = {tempo: [number for number in range(60, 189) if nearest_tempo(number) == tempo] for tempo in TEMPOS}
TOPIC_PROBABILITIES = {
    "genre": 0.85,
    "tempo": 0.65,
    "mood": 0.5,
    "drums": 0.6,
    "register": 0.6,
    "colour": 0.6,
    "chords": 0.45,
    "melody": 0.45,
}
OPENINGS = (
    "",
    "a ",
    "some ",
    "make me a ",
    "I want ",
    "music: ",
    "please play a ",
    "an instrumental ",
    "the sound of ",
)
NOUNS = ("track", "song", "piece", "loop", "music", "tune", "instrumental", "background music")
FILLER_WORDS = (
    "a",
    "the",
    "of",
    "in",
    "and",
    "very",
    "with",
    "for",
    "my",
    "video",
    "sunset",
    "rain",
    "love",
    "winter",
    "cat",
)


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption.

    Attributes:
        text: the prompt.
        topics: keys of TOPIC_PROBABILITIES that it mentions, and `bpm` if it gives a number.
        bpm: that number.
    """

    text: str
    topics: frozenset[str]
    bpm: int | None = None


def caption(song: Song, rng: np.random.Generator, required: frozenset[str] = frozenset()) -> Caption:
    """Draw a caption of a song. `required` topics are always mentioned."""

    def choose(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))] if words else ""

    numbered = rng.random() < 0.4
    number = int(rng.choice(TEMPO_NUMBERS[song.tempo]))
    parts = {
        "genre": choose(GENRES[song.style]),
        "tempo": choose((f"{number} bpm", f"{number} BPM")) if numbered else choose(SPEEDS[speed(song)]),
        "mood": choose(MOODS[song.mode]),
        "drums": choose(DRUMS[song.drums]),
        "register": choose(REGISTERS[song.register]),
        "colour": choose(COLOURS[colour(song)]),
        "chords": choose(INSTRUMENTS[STYLES[song.style].chords]),
        "melody": choose(INSTRUMENTS[STYLES[song.style].melody]),
    }
    phrases = {
        key: words
        for key, words in parts.items()
        if words and (rng.random() < TOPIC_PROBABILITIES[key] or key in required)
    }
    phrases = phrases or {"genre": parts["genre"]}
    text = _with_random_case(_with_filler_words(_join_phrases(phrases, rng), rng), rng)
    if "tempo" in phrases and numbered:
        return Caption(text, frozenset(phrases) | {"bpm"}, number)
    return Caption(text, frozenset(phrases))


def _join_phrases(phrases: dict[str, str], rng: np.random.Generator) -> str:
    """Join phrases to a list, with or without commas, or to a sentence."""
    form = rng.random()
    if form < 0.7:
        words = [list(phrases.values())[i] for i in rng.permutation(len(phrases))]
        return (", " if form < 0.45 else " ").join(dict.fromkeys(words))
    before = [
        phrases[key] for key in ("tempo", "mood", "colour") if key in phrases and "bpm" not in phrases[key].lower()
    ]
    before += [phrases["genre"]] if "genre" in phrases else []
    after = [phrases[key] for key in ("chords", "melody", "register") if key in phrases]
    sentence = str(rng.choice(OPENINGS)) + " ".join([*before, str(rng.choice(NOUNS))])
    sentence += " with " + " and ".join(after) if after else ""
    rest = [phrases["drums"]] if "drums" in phrases else []
    rest += [f"at {phrases['tempo']}"] if "bpm" in phrases.get("tempo", "").lower() else []
    return ", ".join([sentence, *rest])


def _with_filler_words(text: str, rng: np.random.Generator) -> str:
    """Insert words without meaning, known or invented, in a quarter of the captions; real prompts contain many."""
    if rng.random() < 0.75:
        return text
    words = text.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        invented = "".join(rng.choice(list("abcdefghijklmnoprstuvwy"), int(rng.integers(3, 9))))
        word = str(rng.choice(FILLER_WORDS)) if rng.random() < 0.7 else invented
        words.insert(int(rng.integers(len(words) + 1)), word)
    return " ".join(words)


def _with_random_case(text: str, rng: np.random.Generator) -> str:
    form = rng.random()
    if form < 0.75:
        return text
    return text.capitalize() if form < 0.92 else text.title() if form < 0.97 else text.upper()
