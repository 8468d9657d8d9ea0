"""Performance targets of this project, and whether a run meets them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.tables import markdown_table


@dataclass(frozen=True)
class Target:
    """A threshold for one figure.

    Attributes:
        key: the figure's key in `Result.figures`.
        description: description of the figure, for the table.
        threshold: least value, or with `at_most` the greatest.
        at_most: whether the figure must not exceed the threshold.
        unit: unit of the figure and the threshold.
    """

    key: str
    description: str
    threshold: float
    at_most: bool = False
    unit: str = ""

    def verdict(self, measured: float | None) -> str:
        """Return `met`, `not met` or `not measured`."""
        if measured is None:
            return "not measured"
        met = measured <= self.threshold if self.at_most else measured >= self.threshold
        return "met" if met else "not met"


REAL_TIME = "real-time factor, 30 s of mono over HTTP, default precision"
FIRST_AUDIO = "first audio, one client, warm"
CPU_SMALL = (
    Target("x_realtime", REAL_TIME, 1.2, unit="x"),
    Target("x_audiocraft", "speedup over AudioCraft, same clip", 10, unit="x"),
    Target("x_transformers_bf16", "speedup over transformers in bfloat16, same clip", 2.5, unit="x"),
    Target("clients16_audio_s_per_s", "16 clients, total seconds of audio per second", 2),
    Target("clients16_slowest_over_mean", "16 clients, slowest over mean latency per second of audio", 2, at_most=True),
    Target("first_audio_s", FIRST_AUDIO, 0.7, at_most=True, unit=" s"),
    Target("demo_x_realtime", "real-time factor of `demo` over HTTP", 8, unit="x"),
    Target("int8_peak_gb", "peak memory of the runner at int8, one request", 2.2, at_most=True, unit=" GB"),
    Target("int8_load_s", "load time at int8", 4, at_most=True, unit=" s"),
    Target("x_transformers_float32", "float32 over transformers in float32, by steps", 1.3, unit="x"),
)
ROOFLINE_SHARE = Target("roofline_share", "share of the memory roofline, batch 1", 0.6)
GPU_SMALL = (
    Target("x_realtime", REAL_TIME, 12, unit="x"),
    Target("first_audio_s", FIRST_AUDIO, 0.15, at_most=True, unit=" s"),
    Target("clients64_audio_s_per_s", "64 clients, total seconds of audio per second", 300),
    ROOFLINE_SHARE,
)
GPU_MEDIUM = (Target("x_realtime", REAL_TIME, 5, unit="x"), ROOFLINE_SHARE)
TARGETS = {
    ("2 CPU cores", "small"): CPU_SMALL,
    ("an H200", "small"): GPU_SMALL,
    ("an H200", "medium"): GPU_MEDIUM,
}


def targets_table(gpu: bool, size: str, figures: Mapping[str, float | None]) -> str:
    """Return the targets of a kind of machine and a model size beside the measured figures; '' without targets."""
    machine = "an H200" if gpu else "2 CPU cores"
    rows = []
    for target in TARGETS.get((machine, size), ()):
        measured = figures.get(target.key)
        required = f"{'at most' if target.at_most else 'at least'} {target.threshold:g}{target.unit}"
        shown = "" if measured is None else f"{measured:.3g}{target.unit}"
        rows.append((target.description, required, shown, target.verdict(measured)))
    if not rows:
        return ""
    return f"Targets on {machine}:\n\n" + markdown_table(("target", "required", "measured", ""), rows)
