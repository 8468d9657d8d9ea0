"""Invariant 1. In float32 with greedy decoding, the tokens equal AudioCraft's for the same checkpoint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.tiny_models import MONO, PREPEND, STEREO, create_engine, params, reference, run_request

MODELS = {"mono": MONO, "stereo": STEREO, "prepended": PREPEND}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("duration", "cfg_coef"), [(1.0, 3.0), (2.5, 1.0), (0.1, 4.5), (1.0, 0.0)])
def test_tokens_and_samples_equal_audiocrafts(kind: str, duration: float, cfg_coef: float) -> None:
    model = reference(MODELS[kind])
    model.set_generation_params(use_sampling=False, duration=duration, cfg_coef=cfg_coef)
    wav, tokens = model.generate(["epic orchestral score"], return_tokens=True)
    result = run_request(
        create_engine(MODELS[kind]), params("epic orchestral score", duration, temperature=0, cfg_coef=cfg_coef)
    )
    assert (result.tokens == tokens[0].numpy()).all()
    torch.testing.assert_close(torch.from_numpy(result.events.audio), wav[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("duration", [2.02, 3.2, 5.0])
def test_tokens_and_samples_past_the_window_equal_audiocrafts(kind: str, duration: float) -> None:
    """AudioCraft cannot load a window of 2 s (its default stride is 18 s): it loads 30 s, and is then set to 2 s."""
    config = replace(MODELS[kind], seed=5)
    model = reference(config)
    model.max_duration = 2.0
    model.set_generation_params(use_sampling=False, duration=duration, extend_stride=1.2)
    wav, tokens = model.generate(["dark ambient techno"], return_tokens=True)
    short = create_engine(replace(config, window=2))
    result = run_request(short, params("dark ambient techno", duration, temperature=0))
    assert (result.tokens == tokens[0].numpy()).all()
    torch.testing.assert_close(torch.from_numpy(result.events.audio), wav[0], atol=1e-5, rtol=0)


def test_models_that_differ_in_the_window_have_the_same_weights() -> None:
    """The test of lengths past the window relies on this."""
    one, two = (
        create_engine(replace(MONO, seed=5)).checkpoint,
        create_engine(replace(MONO, seed=5, window=2)).checkpoint,
    )
    assert torch.equal(one.weights.embeddings, two.weights.embeddings)
    assert (one.weights.shape.window, two.weights.shape.window) == (1500, 100)


WORDS = st.sampled_from(
    ["epic", "dark", "calm", "lofi", "piano", "bass", "techno", "score", "heavy", "90s", "drums", "élan", "120", "bpm"]
)


@settings(max_examples=25, deadline=None)
@given(
    prompt=st.lists(WORDS, min_size=1, max_size=12).map(" ".join),
    frames=st.integers(5, 60),
    cfg_coef=st.floats(0, 6),
    kind=st.sampled_from(sorted(MODELS)),
)
def test_tokens_equal_audiocrafts_for_any_prompt_length_and_guidance(
    prompt: str, frames: int, cfg_coef: float, kind: str
) -> None:
    model = reference(MODELS[kind])
    model.max_duration = 30.0
    duration = (frames + 0.25) / 50  # a quarter frame more: int(0.58 * 50) is 28 in AudioCraft, not 29
    model.set_generation_params(use_sampling=False, duration=duration, cfg_coef=cfg_coef)
    _, tokens = model.generate([prompt], return_tokens=True)
    result = run_request(create_engine(MODELS[kind]), params(prompt, duration, temperature=0, cfg_coef=cfg_coef))
    assert (result.tokens == tokens[0].numpy()).all()


def test_greedy_tokens_do_not_depend_on_the_seed() -> None:
    model = create_engine()
    one, two = (run_request(model, params(seed=seed, temperature=0)) for seed in (1, 2))
    assert (one.tokens == two.tokens).all()
