"""The bars: what this project has set itself, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """One figure that must be reached.

    Attributes:
        key: of the figure in a run's results.
        what: it is.
        limit: to be reached.
        most: whether the figure may be the limit at most; else it must be the limit at least.
        unit: of both.
    """

    key: str
    what: str
    limit: float
    most: bool = False
    unit: str = ""

    def verdict(self, measured: float | None) -> str:
        """`met`, `not met` or `not measured`."""
        if measured is None:
            return "not measured"
        return "met" if (measured <= self.limit if self.most else measured >= self.limit) else "not met"


ALONE = "30 s of mono through HTTP, default precision, over real time"
FIRST = "first audio alone, warm"
CPU_SMALL = (
    Bar("x_realtime", ALONE, 1.2, unit="x"),
    Bar("x_audiocraft", "the same, over AudioCraft", 10, unit="x"),
    Bar("x_transformers_bf16", "the same, over transformers in bfloat16", 2.5, unit="x"),
    Bar("clients16_audio_s_per_s", "16 clients, audio seconds a second together", 2),
    Bar("clients16_slowest_over_mean", "16 clients, the slowest over the mean, per audio second", 2, most=True),
    Bar("first_audio_s", FIRST, 0.7, most=True, unit=" s"),
    Bar("demo_x_realtime", "`demo` through HTTP, over real time", 8, unit="x"),
    Bar("int8_peak_gb", "peak memory of the runner at int8, one request", 2.2, most=True, unit=" GB"),
    Bar("int8_load_s", "load at int8", 4, most=True, unit=" s"),
    Bar("x_transformers_float32", "float32 over transformers in float32, step by step", 1.3, unit="x"),
)
OF_LIMIT = Bar("of_limit", "of the limit of memory, one clip", 0.6)
GPU_SMALL = (
    Bar("x_realtime", ALONE, 12, unit="x"),
    Bar("first_audio_s", FIRST, 0.15, most=True, unit=" s"),
    Bar("clients64_audio_s_per_s", "64 clients, audio seconds a second together", 300),
    OF_LIMIT,
)
GPU_MEDIUM = (Bar("x_realtime", ALONE, 5, unit="x"), OF_LIMIT)
BARS = {
    ("2 CPU cores", "small"): CPU_SMALL,
    ("an H200", "small"): GPU_SMALL,
    ("an H200", "medium"): GPU_MEDIUM,
}


def table(gpu: bool, size: str, figures: Mapping[str, float | None]) -> str:
    """The bars of a kind of machine and a size, with what was measured beside each, in Markdown; '' without any."""
    machine = "an H200" if gpu else "2 CPU cores"
    rows = [f"Bars of {machine}:", "", "| bar | wanted | measured | |", "| --- | ---: | ---: | --- |"]
    for bar in BARS.get((machine, size), ()):
        measured = figures.get(bar.key)
        wanted = f"{'at most' if bar.most else 'at least'} {bar.limit:g}{bar.unit}"
        found = "" if measured is None else f"{measured:.3g}{bar.unit}"
        rows.append(f"| {bar.what} | {wanted} | {found} | {bar.verdict(measured)} |")
    return "\n".join(rows) if len(rows) > 4 else ""
