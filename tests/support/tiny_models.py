"""Tiny models for the tests, each written and loaded once: by the engine, and by AudioCraft itself."""

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
from tests.support.tiny_checkpoints import Recipe, write

CPU = torch.device("cpu")
torch.set_num_threads(1)  # a tiny model is no faster with two, and much slower where the cores are busy

MONO = Recipe()
STEREO = Recipe(stereo=True)
PREPEND = Recipe(prepend=True)


@cache
def folder(recipe: Recipe) -> Path:
    """A folder with the model, gone when the tests are over."""
    path = Path(tempfile.mkdtemp(prefix="musicgen-test-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return write(path, recipe)


def takes(source: Source, precision: Any = "auto") -> int:
    """Bytes of a model with one clip, on a CPU."""
    return Loader(Settings(device="cpu", precision=precision)).sizes(loading.open_files(source))[0]


@cache
def load(recipe: Recipe, how: Precision = FLOAT32_NATIVE) -> Checkpoint:
    """The model as the engine has it."""
    return loading.load(Source("tiny", folder(recipe)), CPU, how)


@cache
def reference(recipe: Recipe) -> Any:
    """The model as AudioCraft has it."""
    return MusicGen.get_pretrained(str(folder(recipe)), device="cpu")


def engine(
    recipe: Recipe = MONO,
    *,
    slots: int = 4,
    queue: int = 64,
    deterministic: bool = False,
    how: Precision = FLOAT32_NATIVE,
) -> Engine:
    return Engine(load(recipe, how), max_slots=slots, max_queue=queue, deterministic=deterministic)


@dataclass
class EventLog:
    """What a listener heard."""

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
    story: EventLog
    tokens: NDArray[np.int64]


def make(model: Engine, requests: Mapping[str, GenerationParams]) -> dict[str, Result]:
    """Submit all at once and step until nothing is left."""
    results = {}
    for ticket, request in requests.items():
        story = EventLog()
        model.add_request(ticket, request, story)
        results[ticket] = Result(story, model._requests[ticket].tokens.tokens)
    while model.step():
        pass
    return results


def make_one(model: Engine, request: GenerationParams) -> Result:
    result = make(model, {"only": request})["only"]
    assert isinstance(result.story.end, Finished), result.story.end
    return result
