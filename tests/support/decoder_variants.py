"""Engines with each kind of decoder, and requests of different lengths, prompts and parameters to compare them."""

from __future__ import annotations

from dataclasses import replace

from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import Finished
from musicgen_bento.lm.cuda_graph_decoder import CudaGraphDecoder
from musicgen_bento.precision import FLOAT32
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import MONO, Result, create_engine, load, params

SHORT_WINDOW = replace(MONO, window=1)
MIXED_REQUESTS = {
    "greedy": params(duration=0.6, temperature=0.0),
    "sampled": params(duration=1.2, seed=3, prompt="a much longer prompt than that of the others " * 3),
    "unguided": params(duration=0.3, seed=4, cfg_coef=1.0),
    "top_p": params(duration=0.9, seed=5, top_p=0.8),
    "late": params(duration=0.5, seed=6, prompt="word " * 80),  # longer than the first capacity for prompts
    "later": params(duration=0.4, seed=7, cfg_coef=5.0),
}


def eager_engine(config: RandomModelConfig) -> Engine:
    """Create an engine with the eager torch decoder."""
    return create_engine(config, precision=FLOAT32)


def cuda_graph_engine(config: RandomModelConfig, max_slots: int = 4) -> Engine:
    """Create an engine on a CPU with the decoder for CUDA graphs, which runs eagerly there."""
    engine = Engine(load(config, FLOAT32), max_slots=max_slots, max_queue=16, deterministic=False)
    engine._decoder = CudaGraphDecoder(engine.checkpoint.weights)
    return engine


def cpu_engine(config: RandomModelConfig) -> Engine:
    """Create an engine with the decoder on the C kernel."""
    return create_engine(config, max_slots=4)


def assert_same_tokens(results: dict[str, Result], expected: dict[str, Result]) -> None:
    """Assert that all requests are finished and have the expected tokens."""
    for name, result in results.items():
        assert isinstance(result.events.end, Finished), name
        assert (result.tokens == expected[name].tokens).all(), name
