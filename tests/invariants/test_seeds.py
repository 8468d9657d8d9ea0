"""Law 3. A seed is a promise: same request and seed, same bytes, after a restart too."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.support.tiny_models import MONO, engine, folder, make_one, params

PROGRAM = """
import hashlib, sys, torch
from pathlib import Path
from musicgen_bento.engine import checkpoint
from musicgen_bento.engine.engine import ModelEngine
from musicgen_bento.engine.hub import Source
from musicgen_bento.precision import FLOAT32_PACKED
from musicgen_bento.engine.types import Chunk, GenerationParams
torch.set_num_threads(1)
model = checkpoint.load(Source("tiny", Path(sys.argv[1])), torch.device("cpu"), FLOAT32_PACKED)
engine = ModelEngine(model, max_slots=1, max_queue=1, deterministic=True)
events = []
engine.submit("only", GenerationParams("calm piano", 1.0, 42), events.append)
while engine.step(): pass
print(hashlib.sha256(b"".join(e.samples.tobytes() for e in events if isinstance(e, Chunk))).hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes() -> None:
    model = engine()
    one, two = (make_one(model, params(duration=1, seed=42)).story.audio for _ in range(2))
    assert one.tobytes() == two.tobytes()


def test_after_a_restart() -> None:
    """Another process with as many threads makes the very bytes that this one makes."""
    ours = make_one(engine(slots=1, deterministic=True), params(duration=1, seed=42)).story.audio
    theirs = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder(MONO))],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout.strip()  # fmt: skip
    assert theirs == hashlib.sha256(ours.tobytes()).hexdigest()


def test_another_seed_gives_another_clip() -> None:
    model = engine()
    clips = [make_one(model, params(duration=1, seed=seed)).tokens for seed in (0, 1, 2, 2**32 - 1)]
    for i, one in enumerate(clips):
        for other in clips[:i]:
            assert (one == other).mean() < 0.1


@pytest.mark.parametrize("window", [30, 2])
def test_a_longer_clip_begins_like_a_shorter_one(window: float) -> None:
    """The noise is keyed by position, so more of the same is the same."""
    model = engine(replace(MONO, window=window, seed=5), deterministic=True)
    short, long = (make_one(model, params(duration=duration, seed=9)).tokens for duration in (1.0, 3.0))
    assert np.array_equal(short, long[:, :50])
