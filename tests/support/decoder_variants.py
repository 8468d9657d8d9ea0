"""Engines whose decoder gives clips seats, the one without that they are compared with, and clips that come and go."""

from __future__ import annotations

from dataclasses import replace

from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import Finished
from musicgen_bento.lm.cuda_graph_decoder import CudaGraphDecoder
from musicgen_bento.precision import FLOAT32
from tests.support.tiny_checkpoints import Recipe
from tests.support.tiny_models import MONO, Result, engine, load, params

SHORT_WINDOW = replace(MONO, window=1)
COMPANY = {
    "greedy": params(duration=0.6, temperature=0.0),
    "sampled": params(duration=1.2, seed=3, prompt="a much longer prompt than that of the others " * 3),
    "unguided": params(duration=0.3, seed=4, cfg_coef=1.0),
    "top_p": params(duration=0.9, seed=5, top_p=0.8),
    "late": params(duration=0.5, seed=6, prompt="word " * 80),  # longer than the room for prompts at first
    "later": params(duration=0.4, seed=7, cfg_coef=5.0),
}


def plain(recipe: Recipe) -> Engine:
    """With torch's decoder, clip by clip."""
    return engine(recipe, how=FLOAT32)


def graphed(recipe: Recipe, slots: int = 4) -> Engine:
    """With what a CUDA graph replays, run eagerly."""
    model = Engine(load(recipe, FLOAT32), max_slots=slots, max_queue=16, deterministic=False)
    model._decoder = CudaGraphDecoder(model.checkpoint.weights)
    return model


def packed(recipe: Recipe) -> Engine:
    """With the kernel's."""
    return engine(recipe, slots=4)


def assert_same(ours: dict[str, Result], theirs: dict[str, Result]) -> None:
    """The same clips have the same tokens."""
    for name, result in ours.items():
        assert isinstance(result.story.end, Finished), name
        assert (result.tokens == theirs[name].tokens).all(), name
