"""The engine in every precision: on any machine for its paths, on a GPU for what it is for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.config import Settings
from musicgen_bento.device import select_precision
from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import Finished
from musicgen_bento.errors import LoadFailed
from musicgen_bento.precision import BFLOAT16, FLOAT16, FLOAT16_WEIGHTS, FLOAT32, INT8, Precision, supported_precisions
from tests.support.tiny_checkpoints import Recipe
from tests.support.tiny_models import MONO, PREPEND, STEREO, engine, folder, make, make_one, params

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def loaded(recipe: Recipe, device: torch.device, how: Precision) -> Engine:
    model = loading.load(Source("tiny", folder(recipe)), device, how)
    return Engine(model, max_slots=4, max_queue=4, deterministic=False)


@pytest.mark.parametrize("how", [FLOAT16_WEIGHTS, BFLOAT16, INT8], ids=lambda how: how.name)
@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_on_a_cpu(recipe: Recipe, how: Precision) -> None:
    model = loaded(recipe, CPU, how)
    assert model.checkpoint.weights.embeddings.dtype == how.compute_dtype
    story = make_one(model, params(duration=0.5)).story
    assert np.isfinite(story.audio).all()
    assert story.audio.std() > 0


def test_what_a_device_has() -> None:
    assert select_precision(CPU, Settings(precision="int8")) == INT8
    assert select_precision(CPU, Settings(precision="float16")) == FLOAT16_WEIGHTS
    assert select_precision(CUDA, Settings(precision="float16")) == select_precision(CUDA, Settings()) == FLOAT16
    assert select_precision(CPU, Settings()) == INT8
    assert supported_precisions(CUDA)["bfloat16"] == supported_precisions(CPU)["bfloat16"] == BFLOAT16
    with pytest.raises(LoadFailed, match="int8 is for a CPU"):
        select_precision(CUDA, Settings(precision="int8"))


def test_a_cpu_without_packed_products_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", property(lambda _: ["qnnpack"]))
    assert set(supported_precisions(CPU)) == {"float32", "bfloat16", "int8"}
    assert select_precision(CPU, Settings()) == INT8
    with pytest.raises(LoadFailed, match="x86 CPU"):
        select_precision(CPU, Settings(precision="float16"))


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [MONO, STEREO, PREPEND])
def test_float32_on_a_gpu_takes_the_tokens_of_the_cpu(recipe: Recipe) -> None:
    request = params(duration=1.0, temperature=0)
    ours = make_one(loaded(recipe, CUDA, FLOAT32), request)
    assert (ours.tokens == make_one(engine(recipe), request).tokens).all()


@pytest.mark.gpu
def test_float16_on_a_gpu_in_company() -> None:
    requests = {str(n): params(duration=0.5 + n / 4, seed=n, cfg_coef=1.0 if n % 2 else 3.0) for n in range(4)}
    for result in make(loaded(MONO, CUDA, FLOAT16), requests).values():
        assert isinstance(result.story.end, Finished)
        assert np.isfinite(result.story.audio).all()
