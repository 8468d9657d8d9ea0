"""What a run has found, and the figures that are told of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from bench.rounds import POSITIONS, Cell, Visit, clips, middle, ratio, step_ms
from bench.service import Crowd

# The last line of a run: the names and their order are a promise to whoever reads it.
SUMMARY = ("x_realtime", "x_audiocraft", "x_transformers_bf16", "first_audio_s", "clients16_audio_s_per_s")


@dataclass
class Served:
    """The service in one precision.

    Attributes:
        precision: of the model.
        runner: its own line about device and threads.
        load_s: of the model; None where it was in memory from the start.
        clips: seconds for the long clip alone, by round.
        first_audio: seconds to the first samples alone, warm.
        peak_gb: of the runner, the load and one clip at a time.
        peak_gb_clients: the same, after the mixed clients.
        crowds: the mixed clients.
        note: what went wrong.
    """

    precision: str
    runner: str = ""
    load_s: float | None = None
    clips: dict[int, float] = field(default_factory=dict)
    first_audio: list[float] = field(default_factory=list)
    peak_gb: float | None = None
    peak_gb_clients: float | None = None
    crowds: list[Crowd] = field(default_factory=list)
    note: str = ""


@dataclass
class Result:
    """One model on one machine.

    Attributes:
        size: of the model.
        model: its id.
        machine: as `machine.describe` has it.
        quick: whether it was the short form.
        seconds: of the long clip.
        default: the precision that the service takes by itself.
        bandwidth: of the memory, bytes a second.
        least_ms: of a step of one clip at the default precision, by that bandwidth; by position.
        visits: all step times.
        load_s: of the contestants, language model alone, the shortest.
        peak_gb: of the contestants at one clip.
        served: the service.
        demo: seconds for `demo_seconds` of the built-in model, by round.
        demo_seconds: of its clip.
        profile: of one step.
        took_s: the whole run.
    """

    size: str
    model: str
    machine: dict[str, Any]
    quick: bool
    seconds: float
    default: str
    bandwidth: float | None = None
    least_ms: dict[int, float] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)
    load_s: dict[str, float] = field(default_factory=dict)
    peak_gb: dict[str, float] = field(default_factory=dict)
    served: list[Served] = field(default_factory=list)
    demo: dict[int, float] = field(default_factory=dict)
    demo_seconds: float = 10.0
    profile: dict[str, Any] | None = None
    took_s: float = 0.0

    def of(self, precision: str) -> Served:
        """The service in a precision; an empty one where it was not measured."""
        return next((served for served in self.served if served.precision == precision), Served(precision))

    def crowd(self, clients: int) -> Crowd | None:
        """So many mixed clients, at the default precision."""
        return next((crowd for crowd in self.of(self.default).crowds if crowd.clients == clients), None)

    def figures(self) -> dict[str, float | None]:
        """Those of the bars, by key; None where something is missing."""
        ours, int8 = self.of(self.default), self.of("int8")
        crowd, larger = self.crowd(16), self.crowd(64)
        alone = middle(list(ours.clips.values()))
        demo = middle(list(self.demo.values()))
        peers = {
            name: clips(self.visits, name, self.seconds)
            for name in ("audiocraft", "transformers bfloat16", "transformers float32", "ours float32")
        }
        return {
            "x_realtime": self.seconds / alone if alone else None,
            "x_audiocraft": ratio(peers["audiocraft"], ours.clips),
            "x_transformers_bf16": ratio(peers["transformers bfloat16"], ours.clips),
            "first_audio_s": middle(list(ours.first_audio)),
            "clients16_audio_s_per_s": crowd.audio_s_per_s if crowd else None,
            "clients16_slowest_over_mean": crowd.slowest_over_mean if crowd else None,
            "clients64_audio_s_per_s": larger.audio_s_per_s if larger else None,
            "demo_x_realtime": self.demo_seconds / demo if demo else None,
            "int8_peak_gb": int8.peak_gb,
            "int8_load_s": int8.load_s,
            "x_transformers_float32": ratio(peers["transformers float32"], peers["ours float32"]),
            "of_limit": self._of_limit(),
        }

    def _of_limit(self) -> float | None:
        """The least time of a step of one clip over the measured one, on average over the positions."""
        ms = [step_ms(self.visits, f"ours {self.default}", Cell(1, position)) for position in POSITIONS]
        found = [each for each in ms if each is not None]
        return sum(self.least_ms.values()) / sum(found) if self.least_ms and len(found) == len(ms) else None

    def summary(self) -> dict[str, float | None]:
        """The last line of a run."""
        figures = self.figures()
        return {key: None if (value := figures[key]) is None else float(f"{value:.4g}") for key in SUMMARY}

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {**asdict(self), "figures": self.figures()}


def figure(value: float | None) -> str:
    """As tables and plots show it."""
    return "" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
