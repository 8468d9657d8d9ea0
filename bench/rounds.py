"""Rounds, medians and ratios: how figures of a shared and noisy machine are made to compare.

Contestants are measured in rounds, A B C A B C. A ratio is taken within a round, where the machine was the same for
both, and the median of the rounds is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

POSITIONS = (0, 750, 1400)
FRAME_RATE = 50  # steps a second of music


@dataclass(frozen=True, order=True)
class Cell:
    """What a step's time depends on, beside the contestant.

    Attributes:
        batch: clips, two rows each with guidance.
        position: how many positions the cache holds.
    """

    batch: int
    position: int


@dataclass(frozen=True)
class Visit:
    """One contestant's time at one cell.

    Attributes:
        contestant: its name.
        cell: what was measured.
        round: of which round.
        ms: of a step, the median of a few; None where there is none.
        note: why there is none.
    """

    contestant: str
    cell: Cell
    round: int
    ms: float | None
    note: str = ""


def middle(values: Sequence[float | None]) -> float | None:
    """The median of what was measured."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


def ratio(above: Mapping[int, float], below: Mapping[int, float]) -> float | None:
    """The median over the rounds that have both."""
    return middle([above[number] / below[number] for number in above if below.get(number)])


def step_ms(visits: Sequence[Visit], contestant: str, cell: Cell) -> float | None:
    """A contestant's median over the rounds."""
    return middle([visit.ms for visit in visits if (visit.contestant, visit.cell) == (contestant, cell)])


def clips(visits: Sequence[Visit], contestant: str, seconds: float) -> dict[int, float]:
    """Seconds that a contestant's steps take for a clip of so many seconds made alone, by round."""
    found: dict[int, dict[int, float]] = {}
    for visit in visits:
        if visit.contestant == contestant and visit.cell.batch == 1 and visit.ms is not None:
            found.setdefault(visit.round, {})[visit.cell.position] = visit.ms
    return {number: clip_seconds(ms, steps_of(seconds)) for number, ms in found.items() if len(ms) == len(POSITIONS)}


def steps_of(seconds: float) -> int:
    """Steps of a clip: its frames, and three more for the delay of the codebooks."""
    return round(seconds * FRAME_RATE) + 3


def clip_seconds(ms: Mapping[int, float], steps: int) -> float:
    """All steps of a clip, from the times at a few positions.

    Args:
        ms: of a step, by position; two positions at least. Straight lines between them, the last one prolonged.
        steps: positions 0 to steps - 1.
    """
    at = sorted(ms)
    total = 0.0
    for low, high in pairwise(at):
        end = steps if high == at[-1] else min(high, steps)
        slope = (ms[high] - ms[low]) / (high - low)
        for position in range(low, end):
            total += ms[low] + slope * (position - low)
    return total / 1000
