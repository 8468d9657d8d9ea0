"""What people write of a song: some of what is true of it, in some of many words, in any order."""

from __future__ import annotations

import numpy as np

from training.songs import Song

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
    "pad": ("synth pad", "pad", "warm pads", "atmosphere"),
    "flute": ("flute", "woodwind", "pan flute"),
    "lead": ("synth lead", "saw lead", "synthesizer", "lead synth"),
    "chip": ("square wave", "8-bit lead", "chip sound"),
    "plucked": ("plucked strings", "acoustic guitar", "guitar", "harp"),
    "bells": ("bells", "glockenspiel", "chimes", "celesta"),
}
MOODS = {
    "major": ("happy", "uplifting", "cheerful", "joyful", "hopeful", "bright mood", "in major", "major key"),
    "minor": ("sad", "melancholic", "moody", "mysterious", "tense", "epic", "in minor", "minor key"),
}
TEMPOS = {
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
    "plain": (),
    "bright": ("bright", "crisp", "shiny", "sparkling", "bright timbre"),
}
DRUMS = {
    True: ("with drums", "drums", "with a beat", "drum beat", "percussion", "punchy drums"),
    False: ("no drums", "without drums", "beatless", "no percussion", "drumless"),
}


def speed(song: Song) -> str:
    """Slow (under 85), middle, or fast (over 140), as captions have it."""
    return "slow" if song.tempo < 85 else "fast" if song.tempo > 140 else "middle"


def colour(song: Song) -> str:
    """Dark, plain or bright."""
    return "dark" if song.brightness < 0.3 else "bright" if song.brightness > 0.7 else "plain"


def caption(song: Song, rng: np.random.Generator) -> str:
    """A prompt for the song."""

    def one(words: tuple[str, ...]) -> str:
        return str(rng.choice(words)) if words else ""

    parts = {
        "genre": (one(GENRES[song.style]), 0.85),
        "tempo": (f"{song.tempo} bpm" if rng.random() < 0.4 else one(TEMPOS[speed(song)]), 0.7),
        "mood": (one(MOODS[song.mode]), 0.55),
        "drums": (one(DRUMS[song.drums]), 0.65),
        "register": (one(REGISTERS[song.register]), 0.7),
        "colour": (one(COLOURS[colour(song)]), 0.7),
        "chords": (one(INSTRUMENTS[song.chords]), 0.5),
        "melody": (one(INSTRUMENTS[song.melody]), 0.5),
    }
    kept = [words for words, chance in parts.values() if words and rng.random() < chance] or [parts["genre"][0]]
    order = rng.permutation(len(kept))
    separator = ", " if rng.random() < 0.6 else " "
    text = separator.join(dict.fromkeys(kept[i] for i in order))
    return text.capitalize() if rng.random() < 0.2 else text
