"""The engine in float16: on any machine for its paths, on a GPU for what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musicgen_bento.engine import checkpoint
from musicgen_bento.engine.engine import ModelEngine
from musicgen_bento.engine.hub import Source
from musicgen_bento.engine.types import Finished
from tests.checkpoints import Recipe
from tests.models import MONO, PREPEND, STEREO, engine, folder, make, make_one, params


def loaded(recipe: Recipe, device: str, dtype: torch.dtype) -> ModelEngine:
    model = checkpoint.load(Source("tiny", folder(recipe)), torch.device(device), dtype)
    return ModelEngine(model, max_slots=4, max_queue=4, deterministic=False)


@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_float16_on_a_cpu(recipe: Recipe) -> None:
    model = loaded(recipe, "cpu", torch.float16)
    assert model.checkpoint.weights.heads.dtype == torch.float16
    story = make_one(model, params(duration=0.5)).story
    assert np.isfinite(story.audio).all()
    assert story.audio.std() > 0


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_float32_on_a_gpu_takes_the_tokens_of_the_cpu(recipe: Recipe) -> None:
    request = params(duration=1.0, temperature=0)
    ours = make_one(loaded(recipe, "cuda", torch.float32), request)
    assert (ours.tokens == make_one(engine(recipe), request).tokens).all()


@pytest.mark.gpu
def test_float16_on_a_gpu_in_company() -> None:
    requests = {str(n): params(duration=0.5 + n / 4, seed=n, cfg_coef=1.0 if n % 2 else 3.0) for n in range(4)}
    for result in make(loaded(MONO, "cuda", torch.float16), requests).values():
        assert isinstance(result.story.end, Finished)
        assert np.isfinite(result.story.audio).all()
