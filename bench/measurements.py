"""Measurements in rounds, and the medians and ratios of them.

Benchmark machines are shared and noisy, so backends are measured in rounds: A B C A B C. A ratio is computed within a
round, where both backends had the same machine; the median over the rounds is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

POSITIONS = (0, 750, 1400)
STEPS_PER_SECOND = 50  # of audio


@dataclass(frozen=True, order=True)
class Case:
    """The parameters that the time of a step depends on.

    Attributes:
        batch: number of clips; with guidance each has two rows.
        position: number of positions in the KV cache.
    """

    batch: int
    position: int


@dataclass(frozen=True)
class Measurement:
    """The step time of one backend in one case and one round.

    Attributes:
        backend: name of the backend.
        case: the batch size and the position that were measured.
        round: number of the round, from 0.
        ms: milliseconds a step, the median of a few; None where the measurement failed.
        note: why it failed.
    """

    backend: str
    case: Case
    round: int
    ms: float | None
    note: str = ""


def median_or_none(values: Sequence[float | None]) -> float | None:
    """Return the median of the values that are not None, or None without any."""
    measured = [value for value in values if value is not None]
    return median(measured) if measured else None


def median_ratio(numerators: Mapping[int, float], denominators: Mapping[int, float]) -> float | None:
    """Return the median ratio over the rounds that have both values, or None without any."""
    return median_or_none(
        [numerators[number] / denominators[number] for number in numerators if denominators.get(number)]
    )


def step_ms(measurements: Sequence[Measurement], backend: str, case: Case) -> float | None:
    """Return the median milliseconds a step of a backend over the rounds."""
    return median_or_none([entry.ms for entry in measurements if (entry.backend, entry.case) == (backend, case)])


def clip_seconds_by_round(measurements: Sequence[Measurement], backend: str, seconds: float) -> dict[int, float]:
    """Return the seconds that the steps of one clip take at batch 1, for the rounds with all positions.

    Args:
        measurements: measurements of all backends.
        backend: name of the backend.
        seconds: length of the clip.
    """
    rounds: dict[int, dict[int, float]] = {}
    for entry in measurements:
        if entry.backend == backend and entry.case.batch == 1 and entry.ms is not None:
            rounds.setdefault(entry.round, {})[entry.case.position] = entry.ms
    steps = num_steps(seconds)
    return {number: clip_seconds(ms, steps) for number, ms in rounds.items() if len(ms) == len(POSITIONS)}


def num_steps(seconds: float) -> int:
    """Return the steps of a clip: its frames, and three more for the delay pattern of the codebooks."""
    return round(seconds * STEPS_PER_SECOND) + 3


def clip_seconds(ms: Mapping[int, float], steps: int) -> float:
    """Sum the time of all steps of a clip, interpolated linearly between measured positions.

    Args:
        ms: milliseconds a step by position, two positions at least. The last line is extrapolated.
        steps: the clip has positions 0 to steps - 1.
    """
    positions = sorted(ms)
    total = 0.0
    for low, high in pairwise(positions):
        end = steps if high == positions[-1] else min(high, steps)
        slope = (ms[high] - ms[low]) / (high - low)
        for position in range(low, end):
            total += ms[low] + slope * (position - low)
    return total / 1000
