"""Tiny random models for the tests, as this package and as AudioCraft load them; and helpers to run requests on them.

Each model is written and loaded once.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from audiocraft.models import MusicGen
from numpy.typing import NDArray

from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.loading import Checkpoint
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.config import Settings
from musicgen_bento.engine.engine import Engine
from musicgen_bento.engine.types import AudioChunk, Event, EventCallback, Failed, Finished, GenerationParams, Started
from musicgen_bento.model_pool.loader import Loader
from musicgen_bento.model_pool.pool import ModelPool
from musicgen_bento.precision import FLOAT32_NATIVE, Precision
from tests.support.tiny_checkpoints import RandomModelConfig, write_checkpoint

CPU = torch.device("cpu")
torch.set_num_threads(1)  # a tiny model is no faster with two threads, and much slower on busy cores

MONO = RandomModelConfig()
STEREO = RandomModelConfig(stereo=True)
PREPEND = RandomModelConfig(prepend=True)


@cache
def folder(config: RandomModelConfig) -> Path:
    """Write the model to a temporary folder, which is deleted after the tests."""
    path = Path(tempfile.mkdtemp(prefix="musicgen-test-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return write_checkpoint(path, config)


def memory_with_one_request(source: Source, precision: Any = "auto") -> int:
    """Bytes of a model with its largest request, on a CPU."""
    return Loader(Settings(device="cpu", precision=precision)).memory_requirements(loading.open_files(source))[0]


@cache
def load(config: RandomModelConfig, precision: Precision = FLOAT32_NATIVE) -> Checkpoint:
    """Load the model for an engine."""
    return loading.load(Source("tiny", folder(config)), CPU, precision)


@cache
def reference(config: RandomModelConfig) -> Any:
    """Load the model with AudioCraft."""
    return MusicGen.get_pretrained(str(folder(config)), device="cpu")


def create_engine(
    config: RandomModelConfig = MONO,
    *,
    max_slots: int = 4,
    max_queue: int = 64,
    deterministic: bool = False,
    precision: Precision = FLOAT32_NATIVE,
) -> Engine:
    return Engine(load(config, precision), max_slots=max_slots, max_queue=max_queue, deterministic=deterministic)


@dataclass
class EventLog:
    """An event callback that records the events of a request."""

    events: list[Event] = field(default_factory=list)

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def end(self) -> Finished | Failed | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Finished | Failed) else None

    @property
    def started(self) -> Started:
        return next(event for event in self.events if isinstance(event, Started))

    @property
    def audio(self) -> NDArray[np.float32]:
        chunks = [event.samples for event in self.events if isinstance(event, AudioChunk)]
        return np.concatenate(chunks, axis=1) if chunks else np.zeros((1, 0), np.float32)


def params(prompt: str = "calm piano", duration: float = 0.5, seed: int = 0, **rest: Any) -> GenerationParams:
    return GenerationParams(prompt, duration, seed, **rest)


def submit(pool: ModelPool, model: str, request: GenerationParams, on_event: EventCallback) -> str:
    """Add a request to a pool under a new id; return the id."""
    request_id = uuid.uuid4().hex
    pool.add_request(request_id, model, request, on_event)
    return request_id


@dataclass
class Result:
    """The events and the tokens [K, frames] of a request."""

    events: EventLog
    tokens: NDArray[np.int64]


def tokens_of(engine: Engine, request_id: str) -> NDArray[np.int64]:
    """The token array [K, frames] of a request, which the engine fills."""
    request = engine.request_state(request_id)
    assert request is not None
    return request.token_sequence.tokens


def run_requests(engine: Engine, requests: Mapping[str, GenerationParams]) -> dict[str, Result]:
    """Add all requests at once, and step until the engine is idle."""
    results = {}
    for request_id, request in requests.items():
        log = EventLog()
        engine.add_request(request_id, request, log)
        results[request_id] = Result(log, tokens_of(engine, request_id))
    while engine.step():
        pass
    return results


def run_request(engine: Engine, request: GenerationParams) -> Result:
    """Run one request, which must finish."""
    result = run_requests(engine, {"only": request})["only"]
    assert isinstance(result.events.end, Finished), result.events.end
    return result
