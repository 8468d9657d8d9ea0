"""Invariant: the same request and seed give the same bytes, also after a restart."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.support.tiny_models import MONO, create_engine, folder, params, run_request

PROGRAM = """
import hashlib, sys, torch
from pathlib import Path
from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import AudioChunk, GenerationParams
from musicgen_bento.precision import FLOAT32_NATIVE
torch.set_num_threads(1)
checkpoint = loading.load(Source("tiny", Path(sys.argv[1])), torch.device("cpu"), FLOAT32_NATIVE)
engine = Engine(checkpoint, max_slots=1, max_queue=1, deterministic=True)
events = []
engine.add_request("only", GenerationParams("calm piano", 1.0, 42), events.append)
while engine.step(): pass
print(hashlib.sha256(b"".join(e.samples.tobytes() for e in events if isinstance(e, AudioChunk))).hexdigest())
"""


def test_same_seed_gives_same_bytes() -> None:
    engine = create_engine()
    first, second = (run_request(engine, params(duration=1, seed=42)).events.audio for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_same_seed_gives_same_bytes_after_a_restart() -> None:
    """Another process with the same number of threads generates the same bytes."""
    audio = run_request(create_engine(max_slots=1, deterministic=True), params(duration=1, seed=42)).events.audio
    other_hash = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder(MONO))],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout.strip()  # fmt: skip
    assert other_hash == hashlib.sha256(audio.tobytes()).hexdigest()


def test_different_seeds_give_different_tokens() -> None:
    engine = create_engine()
    clips = [run_request(engine, params(duration=1, seed=seed)).tokens for seed in (0, 1, 2, 2**32 - 1)]
    for i, first in enumerate(clips):
        for second in clips[:i]:
            assert (first == second).mean() < 0.1


@pytest.mark.parametrize("window", [30, 2])
def test_longer_clip_begins_with_the_tokens_of_a_shorter_one(window: float) -> None:
    """The sampling noise is keyed by position, so it does not depend on the duration."""
    engine = create_engine(replace(MONO, window=window, seed=5), deterministic=True)
    short, long = (run_request(engine, params(duration=duration, seed=9)).tokens for duration in (1.0, 3.0))
    assert np.array_equal(short, long[:, :50])
