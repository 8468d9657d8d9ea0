"""What people write of a song: some of what is true of it, in some of many words, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.songs import FAST, SLOW, STYLES, TEMPOS, Song, near

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
    """Slow (under 85), middle, or fast (over 140), as captions have it."""
    return "slow" if song.tempo < SLOW else "fast" if song.tempo > FAST else "middle"


def colour(song: Song) -> str:
    """Dark or bright."""
    return "dark" if song.brightness < 0.5 else "bright"


# What a prompt may say of each tempo there is: whatever number is nearest to it.
NUMBERS = {tempo: [number for number in range(60, 189) if near(number) == tempo] for tempo in TEMPOS}
CHANCES = {
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
THINGS = ("track", "song", "piece", "loop", "music", "tune", "instrumental", "background music")
STRANGERS = (
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
    """A prompt, which keys of CHANCES it speaks of (and `bpm`, if it gives a number), and that number."""

    text: str
    says: frozenset[str]
    bpm: int | None = None


def caption(song: Song, rng: np.random.Generator, surely: frozenset[str] = frozenset()) -> Caption:
    """A prompt for the song: some of what is true of it, `surely` of that, in words and an order that `rng` decides."""

    def one(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))] if words else ""

    numbered = rng.random() < 0.4
    number = int(rng.choice(NUMBERS[song.tempo]))
    parts = {
        "genre": one(GENRES[song.style]),
        "tempo": one((f"{number} bpm", f"{number} BPM")) if numbered else one(SPEEDS[speed(song)]),
        "mood": one(MOODS[song.mode]),
        "drums": one(DRUMS[song.drums]),
        "register": one(REGISTERS[song.register]),
        "colour": one(COLOURS[colour(song)]),
        "chords": one(INSTRUMENTS[STYLES[song.style].chords]),
        "melody": one(INSTRUMENTS[STYLES[song.style].melody]),
    }
    said = {key: words for key, words in parts.items() if words and (rng.random() < CHANCES[key] or key in surely)}
    said = said or {"genre": parts["genre"]}
    text = _in_case(_with_strangers(_put(said, rng), rng), rng)
    if "tempo" in said and numbered:
        return Caption(text, frozenset(said) | {"bpm"}, number)
    return Caption(text, frozenset(said))


def _put(said: dict[str, str], rng: np.random.Generator) -> str:
    """A list, with commas or without, or a sentence."""
    form = rng.random()
    if form < 0.7:
        words = [list(said.values())[i] for i in rng.permutation(len(said))]
        return (", " if form < 0.45 else " ").join(dict.fromkeys(words))
    before = [said[key] for key in ("tempo", "mood", "colour") if key in said and "bpm" not in said[key].lower()]
    before += [said["genre"]] if "genre" in said else []
    after = [said[key] for key in ("chords", "melody", "register") if key in said]
    sentence = str(rng.choice(OPENINGS)) + " ".join([*before, str(rng.choice(THINGS))])
    sentence += " with " + " and ".join(after) if after else ""
    rest = [said["drums"]] if "drums" in said else []
    rest += [f"at {said['tempo']}"] if "bpm" in said.get("tempo", "").lower() else []
    return ", ".join([sentence, *rest])


def _with_strangers(text: str, rng: np.random.Generator) -> str:
    """Now and then a word that says nothing, known or not: real prompts are full of them."""
    if rng.random() < 0.75:
        return text
    words = text.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        made_up = "".join(rng.choice(list("abcdefghijklmnoprstuvwy"), int(rng.integers(3, 9))))
        word = str(rng.choice(STRANGERS)) if rng.random() < 0.7 else made_up
        words.insert(int(rng.integers(len(words) + 1)), word)
    return " ".join(words)


def _in_case(text: str, rng: np.random.Generator) -> str:
    form = rng.random()
    if form < 0.75:
        return text
    return text.capitalize() if form < 0.92 else text.title() if form < 0.97 else text.upper()
