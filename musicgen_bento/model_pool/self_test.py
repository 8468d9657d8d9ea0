"""The built-in model, heard before anyone else hears it: a machine that computes wrongly is found at its start."""

from __future__ import annotations

import numpy as np

from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import AudioChunk, Event, Failed, GenerationParams
from musicgen_bento.errors import LoadFailed

PROMPTS = ("fast rock with drums", "slow music box, high, no drums")
SECONDS = 0.5
SILENCE = 1e-4  # RMS


def run_self_test(engine: Engine) -> None:
    """Make two short clips, and the first again. The engine is not in anyone else's hands yet.

    Raises:
        LoadFailed: a clip is silent, the same seed gives other samples, or another prompt gives the same ones.
        MusicGenError: a clip could not be made.
    """
    one, other = (_listen(engine, prompt) for prompt in PROMPTS)
    again = _listen(engine, PROMPTS[0])
    if any(np.sqrt(np.mean(clip**2)) < SILENCE for clip in (one, other)):
        raise _wrong("is silent")
    if not np.array_equal(one, again):
        raise _wrong("gives another clip for the same seed")
    if np.array_equal(one, other):
        raise _wrong("does not hear its prompt")


def _listen(engine: Engine, prompt: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """A clip's samples [T], made on this thread."""
    events: list[Event] = []
    engine.add_request("canary", GenerationParams(prompt=prompt, duration=SECONDS, seed=1), events.append)
    while engine.step():
        pass
    for event in events:
        if isinstance(event, Failed):
            raise event.error
    return np.concatenate([event.samples[0] for event in events if isinstance(event, AudioChunk)])


def _wrong(what: str) -> LoadFailed:
    return LoadFailed(
        f"The built-in model {what}: this machine, or what is installed on it, does not compute as it should.",
        hint="Install the locked environment anew (`make setup`), or set MUSICGEN_DEVICE or MUSICGEN_PRECISION.",
    )
