"""What goes into an engine and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from musicgen_bento.errors import MusicGenError

Samples: TypeAlias = NDArray[np.float32]
"""Audio [C, T], float32, not normalised: values beyond ±1 are possible."""


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """One clip to make.

    Attributes:
        prompt: what it should sound like.
        duration: length in seconds; cut to whole frames.
        seed: 0 to 2**32 - 1.
        temperature: 0 is greedy.
        top_k: sample among the k most probable tokens; 0 is off. Ignored where top_p is on.
        top_p: sample among the most probable tokens of this total probability; 0 is off.
        cfg_coef: classifier-free guidance; 1 is off and costs half.
    """

    prompt: str
    duration: float
    seed: int
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 0.0
    cfg_coef: float = 3.0


@dataclass(frozen=True, slots=True)
class Queued:
    """In the queue; `place` 0 is next. `loading`: the queue before the model, which is on its way into memory."""

    queue_position: int
    loading: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """The clip has a slot. What it will be like is known from here on.

    Attributes:
        model: the model's catalogue id or folder.
        sample_rate: Hz.
        channels: 1 or 2.
        samples: length of the whole clip, per channel.
    """

    model: str
    sample_rate: int
    channels: int
    samples: int


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """The next piece of audio. `position` is the number of samples before it."""

    samples: Samples
    start: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All chunks have been given."""


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no (more) audio."""

    error: MusicGenError


Event: TypeAlias = Queued | Started | AudioChunk | Finished | Failed
"""A clip's story: Waiting*, Started, Chunk*, Finished; Failed may end it at any point."""

EventCallback: TypeAlias = Callable[[Event], None]
"""Called with each event, from the engine's threads, in order. Must return at once and not raise."""


class Engine(Protocol):
    """Makes clips for one loaded model."""

    def submit(self, ticket: str, params: GenerationParams, listener: EventCallback) -> None:
        """Give a clip a place in the queue.

        Raises:
            QueueFull: no place is left; `retry_after` says when to ask again.
            InvalidRequest: this model cannot make it.
        """

    def cancel(self, ticket: str) -> None:
        """Forget a clip: no further event, its slot free within a step. Unknown tickets are ignored."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a model is on its way into memory.

    Attributes:
        step: downloading; waiting, for others to leave memory; loading, into it.
        done_bytes: while downloading, what is here of it.
        total_bytes: while downloading, what there is to come in all.
        ahead: while waiting, how many models come before it.
    """

    step: str
    done_bytes: int | None = None
    total_bytes: int | None = None
    ahead: int | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What the pool knows of a model.

    Attributes:
        id: its name.
        state: downloadable, cached, loading or loaded.
        default: whether it is the one of a request that names none.
        memory_bytes: what it takes in memory with one clip: counted once its files are here, about so much before.
        progress: while it is loading.
    """

    id: str
    state: str
    default: bool = False
    memory_bytes: int | None = None
    progress: LoadProgress | None = None


class Pool(Protocol):
    """All models of one device, by name; loads them when they are asked for."""

    def add_request(
        self, request_id: str, model: str, params: GenerationParams, on_event: EventCallback
    ) -> None:
        """Take a clip for a model (catalogue id, alias, or hub id or folder).

        Never waits: a model that is not in memory is loaded on a thread of its own, and the clip waits for it.

        Raises:
            UnknownModel, InvalidRequest, QueueFull, ShuttingDown: at once. Whatever goes wrong later comes
                to the listener as Failed.
        """

    def abort(self, ticket: str) -> None:
        """Forget a clip, waiting, loading or running."""

    def ready(self) -> bool:
        """Whether all preloaded models are in memory. Raises what kept one of them out."""

    def statuses(self) -> list[ModelStatus]:
        """The state of every model of the catalogue, of others in memory, and of the default model."""

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more clips, let what runs finish for so long, then stop the threads."""
