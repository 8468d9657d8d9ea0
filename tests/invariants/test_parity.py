"""Law 1. In float32, greedy, the tokens equal AudioCraft's own for the same checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny_models import MONO, PREPEND, STEREO, engine, make_one, params, reference

RECIPES = {"mono": MONO, "stereo": STEREO, "prepended": PREPEND}


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize(("duration", "cfg_coef"), [(1.0, 3.0), (2.5, 1.0), (0.1, 4.5), (1.0, 0.0)])
def test_tokens_and_samples_are_audiocrafts(kind: str, duration: float, cfg_coef: float) -> None:
    model = reference(RECIPES[kind])
    model.set_generation_params(use_sampling=False, duration=duration, cfg_coef=cfg_coef)
    wav, tokens = model.generate(["epic orchestral score"], return_tokens=True)
    ours = make_one(engine(RECIPES[kind]), params("epic orchestral score", duration, temperature=0, cfg_coef=cfg_coef))
    assert (ours.tokens == tokens[0].numpy()).all()
    torch.testing.assert_close(torch.from_numpy(ours.story.audio), wav[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("duration", [2.02, 3.2, 5.0])
def test_past_the_window(kind: str, duration: float) -> None:
    """AudioCraft's default stride (18 s) does not fit a window of 2 s, so its twin has 30 s and is told 2."""
    recipe = replace(RECIPES[kind], seed=5)
    model = reference(recipe)
    model.max_duration = 2.0
    model.set_generation_params(use_sampling=False, duration=duration, extend_stride=1.2)
    wav, tokens = model.generate(["dark ambient techno"], return_tokens=True)
    short = engine(replace(recipe, window=2))
    ours = make_one(short, params("dark ambient techno", duration, temperature=0))
    assert (ours.tokens == tokens[0].numpy()).all()
    torch.testing.assert_close(torch.from_numpy(ours.story.audio), wav[0], atol=1e-5, rtol=0)


def test_the_twins_have_the_same_weights() -> None:
    """What the test above relies on: the window is no weight."""
    one, two = engine(replace(MONO, seed=5)).checkpoint, engine(replace(MONO, seed=5, window=2)).checkpoint
    assert torch.equal(one.weights.embeddings, two.weights.embeddings)
    assert (one.weights.shape.window, two.weights.shape.window) == (1500, 100)


words = st.sampled_from(
    ["epic", "dark", "calm", "lofi", "piano", "bass", "techno", "score", "heavy", "90s", "drums", "élan", "120", "bpm"]
)


@settings(max_examples=25, deadline=None)
@given(
    prompt=st.lists(words, min_size=1, max_size=12).map(" ".join),
    frames=st.integers(5, 60),
    cfg_coef=st.floats(0, 6),
    kind=st.sampled_from(sorted(RECIPES)),
)
def test_any_prompt_length_and_guidance(prompt: str, frames: int, cfg_coef: float, kind: str) -> None:
    model = reference(RECIPES[kind])
    model.max_duration = 30.0
    duration = (frames + 0.25) / 50  # AudioCraft takes 0.58 s for 28 frames: int(0.58 * 50) is 28
    model.set_generation_params(use_sampling=False, duration=duration, cfg_coef=cfg_coef)
    _, tokens = model.generate([prompt], return_tokens=True)
    ours = make_one(engine(RECIPES[kind]), params(prompt, duration, temperature=0, cfg_coef=cfg_coef))
    assert (ours.tokens == tokens[0].numpy()).all()


def test_the_seed_does_not_matter_to_a_greedy_clip() -> None:
    model = engine()
    one, two = (make_one(model, params(seed=seed, temperature=0)) for seed in (1, 2))
    assert (one.tokens == two.tokens).all()
