"""The order of the measurements of one model."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import machine, roofline
from bench.backends import BANDWIDTH, backend_names, engine_backend_name, engine_precision
from bench.load_test import DURATIONS, ServiceUnderTest
from bench.machine import device
from bench.measurements import POSITIONS
from bench.models import Model
from bench.results import Result, ServiceResult
from bench.run_case import run_cases
from bench.worker import Worker
from musicgen_bento.config import Settings
from musicgen_bento.device import select_precision
from musicgen_bento.precision import supported_precisions

BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 4, 16, 64)}
QUICK_SECONDS = 270.0  # time limit of the quick run
QUICK_LOAD_TEST_SECONDS = 40.0  # reserved for its load test
FIRST_AUDIO_REPEATS = 3  # per round
MAX_PRECISION_SECONDS = 300.0  # after this time no further round of a precision other than the default begins


@dataclass(frozen=True)
class Plan:
    """Parameters of a run.

    Attributes:
        quick: whether to measure only the default precision and the baselines' steps.
        seconds: length of the long clip.
        rounds: number of rounds, if time allows.
        started: time of the start, on the clock of `time.monotonic`.
    """

    quick: bool
    seconds: float
    rounds: int
    started: float

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the quick run should end."""
        return QUICK_SECONDS - (time.monotonic() - self.started)


class Run:
    """The measurements of one model.

    Args:
        model: the model to measure.
        plan: parameters of the run.
        folder: folder for logs and the servers' files.
        log: called with each line of progress.

    Attributes:
        result: the measurements so far.
    """

    def __init__(self, model: Model, plan: Plan, folder: Path, log: Callable[[str], None]) -> None:
        self._model, self._plan, self._folder, self._log = model, plan, folder, log
        automatic = Settings(precision=Settings.model_fields["precision"].default)
        default = select_precision(device(), automatic).name
        self.result = Result(model.size, model.id, machine.describe(), plan.quick, plan.seconds, default)

    def __call__(self) -> None:
        """Run all measurements. A failure is noted, and the other measurements continue."""
        result, plan = self.result, self._plan
        load, cores = result.machine["load_before"], result.machine["cores"]
        if load > machine.BUSY_LOAD_PER_CORE * cores:
            self._log(f"The machine is busy (load {load:g}); the figures will be lower than on an idle machine.")
        with self._note_failures("bandwidth"):
            self._measure_bandwidth()
        self._measure_default_precision()
        if not plan.quick:
            for number in range(plan.rounds):
                for batch in BATCHES[device().type][1:]:
                    for name in backend_names():
                        self._run_cases(name, batch, number)
            for name in backend_names():
                precision = engine_precision(name)
                if precision not in (None, result.default_precision):
                    self._measure_other_precision(precision)
            with self._note_failures("profile"), self._worker(engine_backend_name(result.default_precision)) as worker:
                result.profile = worker.call("profile", position=POSITIONS[1])
        result.run_seconds = time.monotonic() - plan.started

    def _measure_bandwidth(self) -> None:
        result = self.result
        with self._worker(BANDWIDTH) as worker:
            result.memory_bandwidth = bandwidth = float(worker.call("bandwidth"))
        precision = supported_precisions(device())[result.default_precision]
        shape = self._model.shape
        result.roofline_ms = {
            position: roofline.roofline_ms(shape, precision, position, 1, bandwidth) for position in POSITIONS
        }
        self._log(f"memory bandwidth: {bandwidth / 1e9:.1f} GB/s; default precision: {precision.name}")

    def _measure_default_precision(self) -> None:
        """Measure the service at the default precision, and every backend's steps at batch 1."""
        result, plan = self.result, self._plan
        backends = backend_names()
        if plan.quick:
            backends = (engine_backend_name(result.default_precision), "audiocraft", "transformers bfloat16")
        with self._run_service(result.default_precision) as (service_result, service):
            longest = 0.0
            for number in range(plan.rounds):
                if plan.quick and number and plan.remaining_seconds < longest + QUICK_LOAD_TEST_SECONDS:
                    self._log(f"no time for round {number + 1}")
                    break
                started = time.monotonic()
                self._log(f"round {number + 1}")
                if service is not None:
                    with self._note_failures("service", service_result):
                        self._measure_clip(service_result, service, number)
                        for _ in range(FIRST_AUDIO_REPEATS):
                            service_result.first_audio.append(service.first_audio(plan.seconds))
                    with self._note_failures("demo"):
                        self._measure_demo(service, number)
                for name in backends:
                    self._run_cases(name, 1, number)
                longest = max(longest, time.monotonic() - started)
            if service is not None and service_result.clip_latency:
                with self._note_failures("load test", service_result):
                    self._run_load_tests(service_result, service)

    def _measure_other_precision(self, precision: str) -> None:
        """Measure the service in a precision that is not the default."""
        started = time.monotonic()
        with self._run_service(precision) as (service_result, service), self._note_failures("service", service_result):
            for number in range(self._plan.rounds):
                if service is not None and time.monotonic() - started < MAX_PRECISION_SECONDS:
                    self._measure_clip(service_result, service, number)
                    service_result.first_audio.append(service.first_audio(self._plan.seconds))

    @contextmanager
    def _run_service(self, precision: str) -> Iterator[tuple[ServiceResult, ServiceUnderTest | None]]:
        """Run a server with the model in memory; yield None instead, and note the reason, if it cannot start."""
        self.result.services.append(service_result := ServiceResult(precision))
        folder = self._folder / f"{self._model.size}-{precision}"
        with ExitStack() as stack:
            service = None
            with self._note_failures("service", service_result):
                started = stack.enter_context(ServiceUnderTest(self._model, precision, folder))
                service_result.runner_log = started.describe()
                load_seconds = started.load()
                service_result.load_seconds = None if self._model.id == "demo" else load_seconds
                self._log(f"service, {service_result.runner_log or precision}: loaded in {load_seconds:.1f} s")
                service = started
            yield service_result, service

    def _measure_clip(self, service_result: ServiceResult, service: ServiceUnderTest, number: int) -> None:
        service_result.clip_latency[number] = latency = service.clip(self._plan.seconds)
        service_result.peak_gb = service.peak_gb()
        self._log(f"  service {service_result.precision}: {self._plan.seconds:g} s in {latency:.1f} s")

    def _measure_demo(self, service: ServiceUnderTest, number: int) -> None:
        seconds = self.result.demo_seconds
        self.result.demo_latency[number] = latency = service.clip(seconds, "demo")
        self._log(f"  demo: {seconds:g} s in {latency:.2f} s")

    def _run_load_tests(self, service_result: ServiceResult, service: ServiceUnderTest) -> None:
        """Run load tests; the quick run has only 16 clients, with clips short enough for the remaining time."""
        plan, scale = self._plan, min(1.0, self._plan.seconds / 30)
        if plan.quick:
            realtime_factor = plan.seconds / min(service_result.clip_latency.values())
            scale *= min(0.5, max(0.1, plan.remaining_seconds * realtime_factor / sum(DURATIONS)))
        durations = [max(0.1, round(duration * scale, 1)) for duration in DURATIONS]
        for clients in (16,) if plan.quick else BATCHES[device().type]:
            clips = durations * max(1, clients // len(durations))
            service_result.load_tests.append(test := service.load_test(clients, clips))
            self._log(f"{clients} clients: {test.audio_seconds_per_second:.2f} seconds of audio per second")
        service_result.peak_gb_after_load_tests = service.peak_gb()

    def _run_cases(self, name: str, batch: int, number: int) -> None:
        with self._note_failures(name):
            run_cases(name, self._model, batch, number, self.result, self._folder, self._log)

    def _worker(self, name: str) -> Worker:
        return Worker(name, self._model, self._folder)

    @contextmanager
    def _note_failures(self, what: str, service_result: ServiceResult | None = None) -> Iterator[None]:
        """Log and note any exception, so that the other measurements of a run of hours are not lost."""
        try:
            yield
        except Exception as error:
            self._log(f"{what} failed:\n{''.join(traceback.format_exception(error))}")
            if service_result is not None:
                service_result.note = f"{what} failed: {type(error).__name__}"
