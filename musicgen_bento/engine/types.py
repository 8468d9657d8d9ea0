"""Types at the boundary of the engine: the parameters of a request, and the events that the engine reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from musicgen_bento.errors import MusicGenError

Samples: TypeAlias = NDArray[np.float32]
"""Audio [C, T], float32, not normalized: values beyond ±1 are possible."""


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """The parameters of one request.

    Attributes:
        prompt: a description of the music.
        duration: length of the clip in seconds; rounded down to whole frames.
        seed: seed of the sampling noise, 0 to 2**32 - 1.
        temperature: sampling temperature; 0 is greedy.
        top_k: sample among the k most probable tokens; 0 is off. Ignored if top_p is on.
        top_p: sample among the most probable tokens of this total probability; 0 is off.
        cfg_coef: strength of classifier-free guidance; 1 turns it off and halves the cost.
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
    """The request waits.

    Attributes:
        queue_position: number of requests before this one; 0 is next.
        loading: whether the request waits for its model to be loaded; otherwise it waits for a slot.
    """

    queue_position: int
    loading: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """The request has a slot. The format of the clip is known from here on.

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
    """The next samples of the clip.

    Attributes:
        samples: audio [C, n].
        start: number of samples before this chunk, per channel.
    """

    samples: Samples
    start: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The request is finished: all chunks have been reported."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request has failed: no more audio follows."""

    error: MusicGenError


Event: TypeAlias = Queued | Started | AudioChunk | Finished | Failed
"""The events of a request, in order: Queued*, Started, AudioChunk*, Finished. Failed may end them at any point."""

EventCallback: TypeAlias = Callable[[Event], None]
"""Receives the events of a request, in order, on the engine's threads. Must not block or raise."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """Progress of a model that is being loaded.

    Attributes:
        step: `downloading` its files; `waiting` for memory; or `loading` the files into memory.
        done_bytes: bytes downloaded so far, while downloading.
        total_bytes: bytes to download in total, while downloading.
        ahead: number of models before this one in the queue for memory, while waiting.
    """

    step: str
    done_bytes: int | None = None
    total_bytes: int | None = None
    ahead: int | None = None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The state of a model as clients see it.

    Attributes:
        id: the model's name.
        state: `downloadable`, `cached`, `loading` or `loaded`.
        default: whether requests that do not name a model use this one.
        memory_bytes: memory of the model with one request; an estimate until its files are fetched.
        progress: progress of the load, while `loading`.
    """

    id: str
    state: str
    default: bool = False
    memory_bytes: int | None = None
    progress: LoadProgress | None = None


class RequestSink(Protocol):
    """Accepts requests for any model of a device, as `ModelPool` does."""

    def add_request(self, request_id: str, model: str, params: GenerationParams, on_event: EventCallback) -> None:
        """Accept or refuse a request; never blocks.

        If the model is not in memory, it is loaded on another thread and the request waits for it.

        Args:
            request_id: unique. An id may be used again only if the slot of the earlier request is free.
            model: catalogue id, alias, id on the Hugging Face Hub, or folder.
            params: the parameters of the request.
            on_event: receives the request's events. Later errors arrive there as Failed.

        Raises:
            UnknownModel, InvalidRequest, QueueFull, ShuttingDown: the request is refused.
            ValueError: the id is in use.
        """

    def abort(self, request_id: str) -> None:
        """End a request without a further event, whether it waits or runs. Unknown ids are ignored."""
