"""Checks the output of the built-in model when it is loaded, to find a machine that computes wrongly."""

from __future__ import annotations

import numpy as np

from musicgen_bento.engine.audio_assembler import AudioAssembler
from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import Event, Failed, GenerationParams, Samples
from musicgen_bento.errors import LoadFailed

PROMPTS = ("fast rock with drums", "slow music box, high, no drums")
DURATION_SECONDS = 0.5
SILENCE_RMS = 1e-4


def run_self_test(engine: Engine) -> None:
    """Generate two short clips and the first clip again, on the calling thread. No other thread may use the engine.

    Raises:
        LoadFailed: a clip is silent, the same seed gives other samples, or another prompt gives the same samples.
        MusicGenError: a clip could not be generated.
    """
    first, second = (_generate(engine, prompt) for prompt in PROMPTS)
    repeated = _generate(engine, PROMPTS[0])
    if any(np.sqrt(np.mean(samples**2)) < SILENCE_RMS for samples in (first, second)):
        raise _self_test_error("its output is silent")
    if not np.array_equal(first, repeated):
        raise _self_test_error("the same seed gives different audio")
    if np.array_equal(first, second):
        raise _self_test_error("the prompt does not affect the audio")


def _generate(engine: Engine, prompt: str) -> Samples:
    """Return the samples [C, T] of a clip."""
    assembler = AudioAssembler()
    failures: list[Failed] = []

    def on_event(event: Event) -> None:
        assembler.on_event(event)
        if isinstance(event, Failed):
            failures.append(event)

    params = GenerationParams(prompt=prompt, duration=DURATION_SECONDS, seed=1)
    engine.add_request("self-test", params, on_event)
    while engine.step():
        pass
    for failure in failures:
        raise failure.error
    assert assembler.samples is not None
    return assembler.samples


def _self_test_error(finding: str) -> LoadFailed:
    return LoadFailed(
        f"The built-in model failed its self-test: {finding}. This machine or its software computes incorrectly.",
        hint="Reinstall the locked environment (`make setup`), or set MUSICGEN_DEVICE or MUSICGEN_PRECISION.",
    )
