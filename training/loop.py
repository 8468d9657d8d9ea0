"""A training loop that can be stopped at any time and goes on where it was."""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

SAVE_EVERY = 120.0  # seconds


class OutOfTime(Exception):
    """The time for this part is over; what was reached is saved."""


class Busy(Exception):
    """Another process is at it."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder.

    Raises:
        Busy: one is in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy from None
        yield


class Clock:
    """The time budget of a part."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def check(self) -> None:
        """Raises OutOfTime when there is none left."""
        if time.monotonic() > self._end:
            raise OutOfTime


def steps(
    name: str,
    folder: Path,
    count: int,
    state: dict[str, Any],
    step: Callable[[int], dict[str, float]],
    clock: Clock,
    seed: int,
) -> None:
    """Do step 0 to count - 1, saving now and then; go on after the last one saved.

    Args:
        name: of the files: NAME.state, NAME.jsonl (the curves).
        folder: where they are.
        count: how many there are in all.
        state: what has state_dict and load_state_dict: model, optimizer.
        step: does one step by its number and returns figures; on the number and `seed` alone its randomness depends.
        clock: of this part.
        seed: of torch's generator, which each step begins with anew.

    Raises:
        OutOfTime: the part is over.
    """
    place, curves = folder / f"{name}.state", folder / f"{name}.jsonl"
    first, spent = _restore(place, state)
    _forget_after(curves, first)
    begin = saved = time.monotonic()
    figures: list[dict[str, float]] = []

    def save(done: int) -> None:
        so_far = spent + time.monotonic() - begin
        package = {key: thing.state_dict() for key, thing in state.items()} | {"done": done, "seconds": so_far}
        torch.save(package, f"{place}.part")
        os.replace(f"{place}.part", place)

    with open(curves, "a", encoding="utf-8") as log:
        for number in _progress(name, first, count):
            torch.manual_seed(seed * 1_000_003 + number)
            figures.append(step(number))
            if number % 20 == 19 or number == count - 1:
                means = {key: sum(f[key] for f in figures) / len(figures) for key in figures[0]}
                line = {"step": number + 1, "seconds": round(spent + time.monotonic() - begin, 1)}
                print(json.dumps(line | {key: round(value, 4) for key, value in means.items()}), file=log, flush=True)
                figures = []
            if time.monotonic() - saved > SAVE_EVERY:
                save(number + 1)
                saved = time.monotonic()
            try:
                clock.check()
            except OutOfTime:
                save(number + 1)
                raise
    if first < count:
        save(count)


def _restore(place: Path, state: dict[str, Any]) -> tuple[int, float]:
    if not place.exists():
        return 0, 0.0
    package = torch.load(place, map_location="cpu", weights_only=True)
    for key, thing in state.items():
        thing.load_state_dict(package[key])
    return package["done"], package["seconds"]


def _forget_after(curves: Path, step: int) -> None:
    """Points of a curve that were drawn and not saved come again."""
    if curves.exists():
        lines = [line for line in curves.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        part = curves.with_suffix(".part")
        part.write_text("".join(lines))
        os.replace(part, curves)


def _progress(name: str, first: int, count: int) -> Iterator[int]:
    bar: Iterator[int] = tqdm(range(first, count), initial=first, total=count, desc=name, disable=None)
    return bar


def cosine(step: int, count: int, warm: int = 100) -> float:
    """The learning rate's factor: up in `warm` steps, down to 2% along a cosine."""
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, count - warm)))
