"""The order of a run: what is measured beside what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError

from bench import machine
from bench.company import PROCESS, USABLE, Company, free
from bench.contestant import BANDWIDTH, NAMES, device
from bench.models import Model
from bench.results import Result, Served
from bench.rounds import BATCHES, POSITIONS, Cell, clips
from bench.service import DURATIONS, Service
from bench.worker import Worker, WorkerError
from musicgen_bento.config import Settings
from musicgen_bento.machine import precision
from musicgen_bento.precision import named

ALONE = [Cell(1, position) for position in POSITIONS]
IN_COMPANY = [Cell(batch, position) for batch in BATCHES if batch > 1 for position in POSITIONS]
QUICK_SECONDS, QUICK_CROWD = 280.0, 40.0  # of the quick form, and of its mixed clients
FIRST_AUDIOS = 3  # a round
LONG = 300.0  # seconds of rounds, past which a precision gets one
FAILURES = (requests.RequestException, HTTPError, AssertionError, OSError)  # of a server: not up, or no clip


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


def run(model: Model, plan: Plan, folder: Path, say: Callable[[str], None]) -> Result:
    """Measure one model."""
    default = precision(device(), Settings(precision=Settings.model_fields["precision"].default)).name
    result = Result(model.size, model.id, machine.describe(), plan.quick, plan.seconds, default)
    if result.machine["load_before"] > machine.BUSY * result.machine["cores"]:
        say(f"The machine is busy (load {result.machine['load_before']}): figures will be worse than they are.")
    result.bandwidth = _bandwidth(model, folder, say)
    names = NAMES[device().type]
    if plan.quick:
        names = tuple(dict.fromkeys((f"ours {default}", "audiocraft", "transformers bfloat16")))
    with Company(names, model, folder, say) as company:
        say(f"default precision: {default}; all in memory at once: {'yes' if company.together else 'no'}")
        with ExitStack() as stack:
            result.served.append(served := Served(default))
            service = _served(stack, served, model, folder, say)
            _alone(result, served, service, company, plan, say)
            with _noted(served, say):
                if service is not None and not served.note:
                    _crowds(served, service, plan, say)
        if not plan.quick:
            result.visits += company.visits(plan.rounds, IN_COMPANY)
        result.load_s, result.peak_gb = company.load_s, company.peak_gb
    if not plan.quick:
        others = [name.removeprefix("ours ") for name in names if name.startswith("ours ")]
        _others(result, [name for name in others if name != default], model, plan, folder, say)
        result.profile = _profile(default, model, folder, say)
    result.took_s = time.monotonic() - plan.began
    return result


def _served(stack: ExitStack, served: Served, model: Model, folder: Path, say: Callable[[str], None]) -> Service | None:
    """A server with the model in memory; None, and a note, where that cannot be."""
    with _noted(served, say):
        service = stack.enter_context(Service(model, served.precision, folder / served.precision))
        served.runner = service.describe()
        took = service.load()
        served.load_s = None if model.id == "demo" else took
        say(f"service {served.runner or served.precision}: loaded in {took:.1f} s")
        return service
    return None


@contextmanager
def _noted(served: Served, say: Callable[[str], None]) -> Iterator[None]:
    """What goes wrong with a server is in its note, and nobody else's affair."""
    try:
        yield
    except FAILURES as error:
        served.note = f"the service failed: {type(error).__name__}"
        say(f"{served.precision}: {served.note} ({str(error)[-2000:]})")


def _alone(
    result: Result,
    served: Served,
    service: Service | None,
    company: Company,
    plan: Plan,
    say: Callable[[str], None],
) -> None:
    """Rounds of the service and of everybody's steps, one clip at a time."""
    longest = 0.0
    for number in range(plan.rounds):
        if plan.quick and number and plan.left < longest + QUICK_CROWD:
            say(f"no time for round {number + 1}")
            break
        began = time.monotonic()
        say(f"round {number + 1}")
        with _noted(served, say):
            if service is not None and not served.note:
                _clip(served, service, number, plan.seconds, say)
                served.demo[number] = service.clip(plan.seconds, "demo")
                served.first_audio += [service.first_audio(plan.seconds) for _ in range(FIRST_AUDIOS)]
        for name in company.names:  # one whole contestant after the other, so that its turns are near each other
            result.visits += [company.visit(name, cell, number) for cell in ALONE]
        longest = max(longest, time.monotonic() - began)


def _clip(served: Served, service: Service, number: int, seconds: float, say: Callable[[str], None]) -> None:
    served.clips[number] = took = service.clip(seconds)
    served.peak_gb = service.peak_gb()
    say(f"  service {served.precision}: {seconds:g} s in {took:.1f} s")


def _crowds(served: Served, service: Service, plan: Plan, say: Callable[[str], None]) -> None:
    """Mixed clients. In the short form 16 of them, with clips as short as the time that is left."""
    scale = min(1.0, plan.seconds / 30)
    if plan.quick:
        rate = max(0.2, plan.seconds / min(served.clips.values()))
        scale *= min(0.5, max(0.1, plan.left * rate / sum(DURATIONS)))
    durations = [max(0.1, round(duration * scale, 1)) for duration in DURATIONS]
    for clients in (16,) if plan.quick else BATCHES:
        served.crowds.append(crowd := service.crowd(clients, durations))
        say(f"{clients} clients: {crowd.audio_s_per_s:.2f} audio seconds a second")
    served.peak_gb_clients = service.peak_gb()


def _others(
    result: Result, names: Sequence[str], model: Model, plan: Plan, folder: Path, say: Callable[[str], None]
) -> None:
    """The service in the other precisions, in turns where all of them fit into memory."""
    sizes = [named(name, device()).matrices.itemsize * model.numbers + 2 * PROCESS for name in names]
    groups = [list(names)] if sum(sizes) < USABLE * free() else [[name] for name in names]
    for group in groups:
        with ExitStack() as stack:
            running = []
            for name in group:
                result.served.append(served := Served(name))
                service = _served(stack, served, model, folder, say)
                expected = max(clips(result.visits, f"ours {name}", plan.seconds).values(), default=0.0)
                if service is not None:
                    running.append((served, service, plan.rounds if plan.rounds * expected < LONG else 1))
            for number in range(plan.rounds):
                for served, service, rounds in running:
                    with _noted(served, say):
                        if number < rounds and not served.note:
                            _clip(served, service, number, plan.seconds, say)
                            served.first_audio.append(service.first_audio(plan.seconds))


def _bandwidth(model: Model, folder: Path, say: Callable[[str], None]) -> float | None:
    try:
        with Worker(BANDWIDTH, model, folder) as worker:
            rate = float(worker.ask("bandwidth"))
    except WorkerError as error:
        say(f"bandwidth: {error}")
        return None
    say(f"memory: {rate / 1e9:.1f} GB/s")
    return rate


def _profile(default: str, model: Model, folder: Path, say: Callable[[str], None]) -> dict[str, object] | None:
    say("profile of one step")
    try:
        with Worker(f"ours {default}", model, folder) as worker:
            found: dict[str, object] = worker.ask("profile", position=POSITIONS[1])
            return found
    except WorkerError as error:
        say(f"profile: {error}")
        return None
