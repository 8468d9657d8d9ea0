"""The Prometheus metrics of requests, models and errors. BentoML adds its own HTTP metrics at /metrics.

docs/metrics.md explains each metric. prometheus_client is imported on first use: BentoML sets the folder that collects
the metrics of all processes only when a worker has started.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from musicgen_bento.engine.types import AudioChunk, Event, Failed, Finished, Started
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
    "musicgen_realtime_factor",
    "musicgen_model_loads_total",
    "musicgen_model_evictions_total",
    "musicgen_cancellations_total",
    "musicgen_errors_total",
)


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metric objects, in the order of METRIC_NAMES."""

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
    """Return the metrics of this process. /metrics combines those of the HTTP process and the runner."""
    from prometheus_client import Counter, Gauge, Histogram

    depth, slots, audio, first_audio, realtime_factor, loads, evictions, cancellations, errors = METRIC_NAMES
    # "mostrecent": a runner that was killed leaves its last values behind; those of the next runner replace them.
    return Metrics(
        Gauge(depth, "Requests that wait for a slot or for their model.", ["model"], multiprocess_mode="mostrecent"),
        Gauge(slots, "Requests that are running.", ["model"], multiprocess_mode="mostrecent"),
        Counter(audio, "Seconds of audio of finished requests.", ["model"]),
        Histogram(
            first_audio,
            "Seconds from admission to the first audio.",
            ["model"],
            buckets=FIRST_AUDIO_BUCKETS_SECONDS,
        ),
        Histogram(
            realtime_factor,
            "Seconds of audio per second in a slot, of finished requests.",
            ["model"],
            buckets=REALTIME_FACTOR_BUCKETS,
        ),
        Counter(loads, "Models loaded into memory.", ["model"]),
        Counter(evictions, "Models evicted from memory.", ["model"]),
        Counter(cancellations, "Requests aborted before they were finished.", ["model"]),
        Counter(errors, "Error responses and failed jobs, by error code.", ["code"]),
    )


def count_error(code: str) -> None:
    """Count an error response or a failed job."""
    metrics().errors.labels(code).inc()


def count_load(model: str) -> None:
    """Count a model that was loaded into memory."""
    metrics().loads.labels(model).inc()


def count_eviction(model: str) -> None:
    """Count a model that was evicted from memory."""
    metrics().evictions.labels(model).inc()


@dataclass(slots=True)
class _RequestTimes:
    """The model and the times of one request that is not finished. Times are seconds of `time.monotonic`."""

    model: str
    admitted_at: float
    started_at: float = 0.0
    started: Started | None = None


class RequestMetrics:
    """Updates the metrics of requests. All methods run on the event loop of the runner.

    Args:
        request_counts: returns the numbers of running and of waiting requests by model.
    """

    def __init__(self, request_counts: Callable[[], dict[str, tuple[int, int]]]) -> None:
        self._request_counts = request_counts
        self._active: dict[str, _RequestTimes] = {}  # by request id, until Finished, Failed or abort
        self._started_models: set[str] = set()
        self._labels: set[str] = set()

    def on_admit(self, request_id: str, model: str, admitted_at: float) -> None:
        """Begin to measure a request.

        Args:
            request_id: the request's id.
            model: the name that the client sent.
            admitted_at: when the request arrived at the runner, in seconds of `time.monotonic`.
        """
        self._active[request_id] = _RequestTimes(model, admitted_at)
        self._refresh_gauges()

    def on_event(self, request_id: str, event: Event, reported_at: float) -> None:
        """Record an event of a request. Events of aborted requests only refresh the gauges.

        Args:
            request_id: the request's id.
            event: an event, in the order in which the pool reported them.
            reported_at: when the pool reported it, in seconds of `time.monotonic`. The event loop may be late.
        """
        times = self._active.get(request_id)
        if times is not None:
            self._record(times, event, reported_at)
        if isinstance(event, Finished | Failed):
            self._active.pop(request_id, None)
        if isinstance(event, Started | Finished | Failed):
            self._refresh_gauges()

    def on_abort(self, request_id: str) -> None:
        """Count the abort of a request, unless it has ended already."""
        times = self._active.pop(request_id, None)
        if times is not None:
            metrics().cancellations.labels(self._label(times.model)).inc()
            self._refresh_gauges()

    def _record(self, times: _RequestTimes, event: Event, now: float) -> None:
        match event:
            case Started():
                times.started, times.started_at = event, now
                self._started_models.add(event.model)
            case AudioChunk(start=0) if times.started:
                metrics().first_audio.labels(times.started.model).observe(now - times.admitted_at)
            case Finished() if times.started:
                audio_seconds = times.started.samples / times.started.sample_rate
                metrics().audio_seconds.labels(times.started.model).inc(audio_seconds)
                metrics().realtime_factor.labels(times.started.model).observe(audio_seconds / (now - times.started_at))

    def _label(self, model: str) -> str:
        """Return the value of the label `model`.

        A client can send any model name, and each new value would be a new time series. Only models of the catalogue
        and models that have started a request get a value of their own.
        """
        card = find_model(model)
        if card is not None:
            return card.id
        return model if model in self._started_models else "(other)"

    def _refresh_gauges(self) -> None:
        running, waiting = Counts[str](), Counts[str]()
        for model, (running_requests, waiting_requests) in self._request_counts().items():
            running[self._label(model)] += running_requests
            waiting[self._label(model)] += waiting_requests
        self._labels |= running.keys()
        for label in self._labels:  # a model that is not in memory any more counts 0
            metrics().slots_in_use.labels(label).set(running[label])
            metrics().queue_depth.labels(label).set(waiting[label])
