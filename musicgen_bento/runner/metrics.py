"""What /metrics says of the music, beside BentoML's own figures of the requests. docs/metrics.md says what to watch.

prometheus_client is imported on first use: BentoML tells it where the processes' figures come together only once a
worker has started.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Counts
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from musicgen_bento.engine.types import (
    AudioChunk,
    Event,
    EventCallback,
    Failed,
    Finished,
    GenerationParams,
    ModelStatus,
    Pool,
    Started,
)
from musicgen_bento.model_catalog import find_model

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

FIRST_AUDIO_BUCKETS_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 300)
REALTIME_FACTOR_BUCKETS = (0.1, 0.25, 0.5, 0.8, 1, 1.5, 2, 4, 8, 16, 32)

METRIC_NAMES = (
    "musicgen_queue_depth",
    "musicgen_slots_in_use",
    "musicgen_audio_seconds_total",
    "musicgen_time_to_first_audio_seconds",
    "musicgen_times_real_time",
    "musicgen_model_loads_total",
    "musicgen_model_evictions_total",
    "musicgen_cancellations_total",
    "musicgen_errors_total",
)


@dataclass(frozen=True, slots=True)
class Metrics:
    """One object for each of NAMES."""

    queue_depth: Gauge
    slots_in_use: Gauge
    audio_seconds: Counter
    first_audio: Histogram
    realtime_factor: Histogram
    loads: Counter
    evictions: Counter
    cancellations: Counter
    errors: Counter


@cache
def metrics() -> Metrics:
    """This process's. Both processes have them; what is asked for at /metrics is the sum."""
    from prometheus_client import Counter, Gauge, Histogram

    depth, slots, audio, first, speed, loads, evictions, cancellations, errors = METRIC_NAMES
    # "mostrecent": a runner that was killed cannot take back what it said; the one that follows it can.
    return Metrics(
        Gauge(depth, "Clips that wait for a slot or for their model.", ["model"], multiprocess_mode="mostrecent"),
        Gauge(slots, "Clips that are being made.", ["model"], multiprocess_mode="mostrecent"),
        Counter(audio, "Seconds of audio made, whole clips.", ["model"]),
        Histogram(first, "From admission to the first samples.", ["model"], buckets=FIRST_AUDIO_BUCKETS_SECONDS),
        Histogram(speed, "A clip's length over the time in its slot.", ["model"], buckets=REALTIME_FACTOR_BUCKETS),
        Counter(loads, "Models loaded into memory.", ["model"]),
        Counter(evictions, "Models that left memory for another.", ["model"]),
        Counter(cancellations, "Clips whose client left.", ["model"]),
        Counter(errors, "Answers that were errors, by their code.", ["code"]),
    )


def count_error(code: str) -> None:
    """An error has been answered."""
    metrics().errors.labels(code).inc()


def count_load(model: str) -> None:
    """A model has been loaded."""
    metrics().loads.labels(model).inc()


def count_eviction(model: str) -> None:
    """A model has left memory for another."""
    metrics().evictions.labels(model).inc()


class MeasuredPool:
    """A pool whose clips are measured on their way through.

    Args:
        pool: the pool.
        loads: clips running and clips waiting, by model.
    """

    def __init__(self, pool: Pool, loads: Callable[[], dict[str, tuple[int, int]]]) -> None:
        self._pool = pool
        self._loads = loads
        self._made: set[str] = set()  # models that have begun a clip
        self._labels: set[str] = set()
        self._models: dict[str, str] = {}  # of the clips that are not over, by ticket
        self._lock = threading.Lock()

    def add_request(self, request_id: str, model: str, params: GenerationParams, on_event: EventCallback) -> None:
        """See `Pool.submit`."""
        clip = _Clip(on_event, self._heard)
        clip.ticket = request_id
        self._pool.add_request(request_id, model, params, clip)
        with self._lock:
            if not clip.over:
                self._models[request_id] = model
        self._gauge()

    def abort(self, ticket: str) -> None:
        """See `Pool.cancel`."""
        with self._lock:
            model = self._models.pop(ticket, None)
        self._pool.abort(ticket)
        if model is not None:
            metrics().cancellations.labels(self._label(model)).inc()
            self._gauge()

    def ready(self) -> bool:
        """See `Pool.ready`."""
        return self._pool.ready()

    def statuses(self) -> list[ModelStatus]:
        """See `Pool.statuses`."""
        return self._pool.statuses()

    def close(self, drain_seconds: float = 0.0) -> None:
        """See `Pool.close`."""
        self._pool.close(drain_seconds)

    def _heard(self, ticket: str, event: Event) -> None:
        with self._lock:
            if isinstance(event, Started):
                self._made.add(event.model)
            else:
                self._models.pop(ticket, None)
        self._gauge()

    def _label(self, model: str) -> str:
        """A client may write anything: a name of its own is for what is in the catalogue, or has made music."""
        card = find_model(model)
        return card.id if card else model if model in self._made else "(other)"

    def _gauge(self) -> None:
        running, waiting = Counts[str](), Counts[str]()
        for model, (runs, waits) in self._loads().items():
            running[self._label(model)] += runs
            waiting[self._label(model)] += waits
        self._labels |= running.keys()
        for label in list(self._labels):  # one that is not in memory any more has none
            metrics().slots_in_use.labels(label).set(running[label])
            metrics().queue_depth.labels(label).set(waiting[label])


class _Clip:
    """Listens to one clip for its figures, and passes everything on."""

    def __init__(self, listener: EventCallback, heard: Callable[[str, Event], None]) -> None:
        self._listener = listener
        self._heard = heard
        self._asked = self._begun = time.monotonic()
        self._started: Started | None = None
        self.ticket = ""
        self.over = False

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        match event:
            case Started():
                self._started, self._begun = event, now
            case AudioChunk(start=0) if self._started:
                metrics().first_audio.labels(self._started.model).observe(now - self._asked)
            case Finished() if self._started:
                seconds = self._started.samples / self._started.sample_rate
                metrics().audio_seconds.labels(self._started.model).inc(seconds)
                metrics().realtime_factor.labels(self._started.model).observe(seconds / (now - self._begun))
        self._listener(event)
        self.over = isinstance(event, Finished | Failed)
        if self.over or isinstance(event, Started):
            self._heard(self.ticket, event)
