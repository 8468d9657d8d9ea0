"""The engine in every precision: all code paths on a CPU, and the real use on a GPU."""

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
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, PREPEND, STEREO, create_engine, folder, params, run_request, run_requests

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def load_engine(config: RandomModelConfig, device: torch.device, precision: Precision) -> Engine:
    model = loading.load(Source("tiny", folder(config)), device, precision)
    return Engine(model, max_slots=4, max_queue=4, deterministic=False)


@pytest.mark.parametrize("precision", [FLOAT16_WEIGHTS, BFLOAT16, INT8], ids=lambda precision: precision.name)
@pytest.mark.parametrize("config", [MONO, STEREO, PREPEND])
def test_every_cpu_precision_generates_audio(config: RandomModelConfig, precision: Precision) -> None:
    engine = load_engine(config, CPU, precision)
    assert engine.checkpoint.weights.embeddings.dtype == precision.compute_dtype
    log = run_request(engine, params(duration=0.5)).events
    assert np.isfinite(log.audio).all()
    assert log.audio.std() > 0


def test_select_precision_by_device() -> None:
    assert select_precision(CPU, Settings(precision="int8")) == INT8
    assert select_precision(CPU, Settings(precision="float16")) == FLOAT16_WEIGHTS
    assert select_precision(CUDA, Settings(precision="float16")) == select_precision(CUDA, Settings()) == FLOAT16
    assert select_precision(CPU, Settings()) == INT8
    assert supported_precisions(CUDA)["bfloat16"] == supported_precisions(CPU)["bfloat16"] == BFLOAT16
    with pytest.raises(LoadFailed, match="int8 requires a CPU"):
        select_precision(CUDA, Settings(precision="int8"))


def test_float16_needs_an_x86_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", property(lambda _: ["qnnpack"]))
    assert set(supported_precisions(CPU)) == {"float32", "bfloat16", "int8"}
    assert select_precision(CPU, Settings()) == INT8
    with pytest.raises(LoadFailed, match="x86 CPU"):
        select_precision(CPU, Settings(precision="float16"))


@pytest.mark.gpu
@pytest.mark.parametrize("config", [MONO, STEREO, PREPEND])
def test_float32_on_a_gpu_generates_the_tokens_of_the_cpu(config: RandomModelConfig) -> None:
    request = params(duration=1.0, temperature=0)
    on_gpu = run_request(load_engine(config, CUDA, FLOAT32), request)
    assert (on_gpu.tokens == run_request(create_engine(config), request).tokens).all()


@pytest.mark.gpu
def test_float16_on_a_gpu_generates_a_batch() -> None:
    requests = {str(n): params(duration=0.5 + n / 4, seed=n, cfg_coef=1.0 if n % 2 else 3.0) for n in range(4)}
    for result in run_requests(load_engine(MONO, CUDA, FLOAT16), requests).values():
        assert isinstance(result.events.end, Finished)
        assert np.isfinite(result.events.audio).all()
