"""The result of a run, and the figures that are reported from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bench.backends import engine_backend_name
from bench.load_test import LoadTest
from bench.measurements import (
    POSITIONS,
    Case,
    Measurement,
    clip_seconds_by_round,
    median_or_none,
    median_ratio,
    step_ms,
)

# Keys of the last line of a run. Other programs read it: keep names and order.
SUMMARY = ("x_realtime", "x_audiocraft", "x_transformers_bf16", "first_audio_s", "clients16_audio_s_per_s")


@dataclass
class ServiceResult:
    """Measurements of the service in one precision.

    Attributes:
        precision: precision of the model.
        runner_log: the runner's log line with device and threads.
        load_seconds: seconds to load the model; None if it was in memory from the start.
        clip_latency: seconds for the long clip, one client, by round.
        first_audio: seconds to the first samples, one client, warm.
        peak_gb: peak memory of the runner after loading and one clip at a time.
        peak_gb_after_load_tests: the same after the load tests.
        load_tests: several clients with clips of mixed durations.
        note: the error of a measurement that failed.
    """

    precision: str
    runner_log: str = ""
    load_seconds: float | None = None
    clip_latency: dict[int, float] = field(default_factory=dict)
    first_audio: list[float] = field(default_factory=list)
    peak_gb: float | None = None
    peak_gb_after_load_tests: float | None = None
    load_tests: list[LoadTest] = field(default_factory=list)
    note: str = ""


@dataclass
class Result:
    """Measurements of one model on one machine.

    Attributes:
        size: name of the model's size.
        model: id of the model.
        machine: see `machine.describe`.
        quick: whether this is the quick run.
        seconds: length of the long clip.
        default_precision: the precision that the service chooses.
        memory_bandwidth: bytes a second.
        roofline_ms: least milliseconds of a step at batch 1 and the default precision, by position.
        measurements: all step times.
        load_seconds: least load time of each backend, language model alone.
        peak_gb: peak memory of each backend at batch 1.
        services: the service in each precision.
        demo_latency: seconds for a clip of the built-in model, by round.
        demo_seconds: length of that clip.
        profile: profile of one step; see `profile.profile`.
        run_seconds: duration of the run; 0 if it was interrupted.
    """

    size: str
    model: str
    machine: dict[str, Any]
    quick: bool
    seconds: float
    default_precision: str
    memory_bandwidth: float | None = None
    roofline_ms: dict[int, float] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    load_seconds: dict[str, float] = field(default_factory=dict)
    peak_gb: dict[str, float] = field(default_factory=dict)
    services: list[ServiceResult] = field(default_factory=list)
    demo_latency: dict[int, float] = field(default_factory=dict)
    demo_seconds: float = 10.0
    profile: dict[str, Any] | None = None
    run_seconds: float = 0.0

    def service(self, precision: str) -> ServiceResult:
        """Return the service's result in a precision, an empty one if it was not measured."""
        return next((service for service in self.services if service.precision == precision), ServiceResult(precision))

    def load_test(self, clients: int) -> LoadTest | None:
        """Return the load test with that many clients at the default precision."""
        tests = self.service(self.default_precision).load_tests
        return next((test for test in tests if test.clients == clients), None)

    def figures(self) -> dict[str, float | None]:
        """Return the figures that targets refer to, by key; None where a measurement is missing."""
        default, int8 = self.service(self.default_precision), self.service("int8")
        clients16, clients64 = self.load_test(16), self.load_test(64)
        latency = median_or_none(list(default.clip_latency.values()))
        demo = median_or_none(list(self.demo_latency.values()))
        float32 = self._clip_seconds(engine_backend_name("float32"))
        return {
            "x_realtime": self.seconds / latency if latency else None,
            "x_audiocraft": median_ratio(self._clip_seconds("audiocraft"), default.clip_latency),
            "x_transformers_bf16": median_ratio(self._clip_seconds("transformers bfloat16"), default.clip_latency),
            "first_audio_s": median_or_none(list(default.first_audio)),
            "clients16_audio_s_per_s": clients16.audio_seconds_per_second if clients16 else None,
            "clients16_slowest_over_mean": clients16.slowest_over_mean if clients16 else None,
            "clients64_audio_s_per_s": clients64.audio_seconds_per_second if clients64 else None,
            "demo_x_realtime": self.demo_seconds / demo if demo else None,
            "int8_peak_gb": int8.peak_gb,
            "int8_load_s": int8.load_seconds,
            "x_transformers_float32": median_ratio(self._clip_seconds("transformers float32"), float32),
            "roofline_share": self._roofline_share(),
        }

    def _clip_seconds(self, backend: str) -> dict[int, float]:
        return clip_seconds_by_round(self.measurements, backend, self.seconds)

    def _roofline_share(self) -> float | None:
        """Return the least time of a step at batch 1 over the measured one, on average over the positions."""
        backend = engine_backend_name(self.default_precision)
        times = [step_ms(self.measurements, backend, Case(1, position)) for position in POSITIONS]
        measured = [ms for ms in times if ms is not None]
        if not self.roofline_ms or len(measured) < len(times):
            return None
        return sum(self.roofline_ms.values()) / sum(measured)

    def summary(self) -> dict[str, float | None]:
        """Return the last line of a run."""
        figures = self.figures()
        return {key: None if (value := figures[key]) is None else float(f"{value:.4g}") for key in SUMMARY}

    def as_json(self) -> dict[str, Any]:
        """Return all measurements and figures."""
        return {**asdict(self), "figures": self.figures()}
