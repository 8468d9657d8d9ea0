"""The order of a run: what is measured after what."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import limit, machine
from bench.contestant import BANDWIDTH, names
from bench.machine import device
from bench.models import Model
from bench.results import Result, Served
from bench.rounds import POSITIONS
from bench.service import DURATIONS, Service
from bench.turn import turn
from bench.worker import Worker
from musicgen_bento.config import Settings
from musicgen_bento.device import select_precision
from musicgen_bento.precision import supported_precisions

BATCHES = {"cpu": (1, 4, 16), "cuda": (1, 4, 16, 64)}
QUICK_SECONDS, QUICK_CROWD = 270.0, 40.0  # of the short form, and of its mixed clients
FIRST_AUDIOS = 3  # a round
LONG = 300.0  # seconds, past which a precision beside the default gets no further round


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        quick: the short form.
        seconds: of the long clip.
        rounds: how many, where there is time.
        began: when the run did, on `time.monotonic`'s clock.
    """

    quick: bool
    seconds: float
    rounds: int
    began: float

    @property
    def left(self) -> float:
        """Seconds until the short form should be over."""
        return QUICK_SECONDS - (time.monotonic() - self.began)


class Run:
    """One model.

    Args:
        model: to measure.
        plan: how.
        folder: for logs and the servers' files.
        say: told what happens.

    Attributes:
        result: what is known by now, whole or not.
    """

    def __init__(self, model: Model, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
        self._model, self._plan, self._folder, self._say = model, plan, folder, say
        automatic = Settings(precision=Settings.model_fields["precision"].default)
        default = select_precision(device(), automatic).name
        self.result = Result(model.size, model.id, machine.describe(), plan.quick, plan.seconds, default)

    def __call__(self) -> None:
        """All of it. What goes wrong is noted, and the rest goes on."""
        result, plan = self.result, self._plan
        if result.machine["load_before"] > machine.BUSY * result.machine["cores"]:
            self._say(f"The machine is busy (load {result.machine['load_before']:g}): figures will be worse than true.")
        with self._noted("bandwidth"):
            self._bandwidth()
        self._default()
        if not plan.quick:
            for number in range(plan.rounds):
                for batch in BATCHES[device().type][1:]:
                    for name in names():
                        self._turn(name, batch, number)
            for name in names():
                how = name.removeprefix("ours ")
                if how not in (name, result.default):
                    self._other(how)
            with self._noted("profile"), self._worker(f"ours {result.default}") as worker:
                result.profile = worker.ask("profile", position=POSITIONS[1])
        result.took_s = time.monotonic() - plan.began

    def _bandwidth(self) -> None:
        with self._worker(BANDWIDTH) as worker:
            self.result.bandwidth = rate = float(worker.ask("bandwidth"))
        how = supported_precisions(device())[self.result.default]
        least = {at: limit.milliseconds(self._model.shape, how, at, 1, rate) for at in POSITIONS}
        self.result.least_ms = least
        self._say(f"memory: {rate / 1e9:.1f} GB/s; default precision: {how.name}")

    def _default(self) -> None:
        """The service at the default precision, and everybody's steps for one clip."""
        result, plan = self.result, self._plan
        contestants = (f"ours {result.default}", "audiocraft", "transformers bfloat16") if plan.quick else names()
        with self._served(result.default) as (served, service):
            longest = 0.0
            for number in range(plan.rounds):
                if plan.quick and number and plan.left < longest + QUICK_CROWD:
                    self._say(f"no time for round {number + 1}")
                    break
                began = time.monotonic()
                self._say(f"round {number + 1}")
                if service is not None:
                    with self._noted("service", served):
                        self._clip(served, service, number)
                        served.first_audio += [service.first_audio(plan.seconds) for _ in range(FIRST_AUDIOS)]
                    with self._noted("demo"):
                        self._demo(service, number)
                for name in contestants:
                    self._turn(name, 1, number)
                longest = max(longest, time.monotonic() - began)
            if service is not None and served.clips:
                with self._noted("clients", served):
                    self._crowds(served, service)

    def _other(self, how: str) -> None:
        """The service in another precision."""
        began = time.monotonic()
        with self._served(how) as (served, service), self._noted("service", served):
            for number in range(self._plan.rounds):
                if service is not None and time.monotonic() - began < LONG:
                    self._clip(served, service, number)
                    served.first_audio.append(service.first_audio(self._plan.seconds))

    @contextmanager
    def _served(self, how: str) -> Iterator[tuple[Served, Service | None]]:
        """A server with the model in memory; None, and a note, where that cannot be."""
        self.result.served.append(served := Served(how))
        with ExitStack() as stack:
            service = None
            with self._noted("service", served):
                started = stack.enter_context(Service(self._model, how, self._folder / f"{self._model.size}-{how}"))
                served.runner = started.describe()
                took = started.load()
                served.load_s = None if self._model.id == "demo" else took
                self._say(f"service, {served.runner or how}: loaded in {took:.1f} s")
                service = started
            yield served, service

    def _clip(self, served: Served, service: Service, number: int) -> None:
        served.clips[number] = took = service.clip(self._plan.seconds)
        served.peak_gb = service.peak_gb()
        self._say(f"  service {served.precision}: {self._plan.seconds:g} s in {took:.1f} s")

    def _demo(self, service: Service, number: int) -> None:
        seconds = self.result.demo_seconds
        self.result.demo[number] = took = service.clip(seconds, "demo")
        self._say(f"  demo: {seconds:g} s in {took:.2f} s")

    def _crowds(self, served: Served, service: Service) -> None:
        """Mixed clients. In the short form 16 of them, with clips as short as the time that is left."""
        plan, scale = self._plan, min(1.0, self._plan.seconds / 30)
        if plan.quick:
            rate = plan.seconds / min(served.clips.values())
            scale *= min(0.5, max(0.1, plan.left * rate / sum(DURATIONS)))
        durations = [max(0.1, round(duration * scale, 1)) for duration in DURATIONS]
        for clients in (16,) if plan.quick else BATCHES[device().type]:
            clips = durations * max(1, clients // len(durations))
            served.crowds.append(crowd := service.crowd(clients, clips))
            self._say(f"{clients} clients: {crowd.audio_s_per_s:.2f} audio seconds a second")
        served.peak_gb_clients = service.peak_gb()

    def _turn(self, name: str, batch: int, number: int) -> None:
        with self._noted(name):
            turn(name, self._model, batch, number, self.result, self._folder, self._say)

    def _worker(self, name: str) -> Worker:
        return Worker(name, self._model, self._folder)

    @contextmanager
    def _noted(self, what: str, served: Served | None = None) -> Iterator[None]:
        """What goes wrong is in a note, whatever it is: there is more to measure, and hours have been put into it."""
        try:
            yield
        except Exception as error:
            self._say(f"{what} failed:\n{''.join(traceback.format_exception(error))}")
            if served is not None:
                served.note = f"{what} failed: {type(error).__name__}"
