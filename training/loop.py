"""A training loop that can be stopped at any time and resumes at the last saved step."""

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

SAVE_INTERVAL_SECONDS = 120.0  # seconds


class OutOfTime(Exception):
    """The time limit is reached; the progress is saved."""


class FolderInUse(Exception):
    """Another process uses the folder."""


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes.

    Raises:
        FolderInUse: another process has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse from None
        yield


class Clock:
    """The time limit of one call."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def check(self) -> None:
        """Raise OutOfTime once the limit is reached."""
        if time.monotonic() > self._end:
            raise OutOfTime


def run_steps(
    name: str,
    folder: Path,
    count: int,
    state: dict[str, Any],
    step: Callable[[int], dict[str, float]],
    clock: Clock,
    seed: int,
) -> None:
    """Run the steps up to count - 1 from the last saved one, and save regularly.

    Args:
        name: of the files NAME.state and NAME.jsonl (the curve).
        folder: of the files.
        count: number of steps in total.
        state: objects with state_dict and load_state_dict, by name: models, optimizers.
        step: runs the step of a number and returns its figures; its random numbers depend only on number and `seed`.
        clock: time limit.
        seed: of torch's generator, which is seeded again for each step.

    Raises:
        OutOfTime: the time limit is reached.
    """
    path, curve = folder / f"{name}.state", folder / f"{name}.jsonl"
    first, spent = _restore(path, state)
    _truncate_curve(curve, first)
    started = saved = time.monotonic()
    figures: list[dict[str, float]] = []

    def save(done: int) -> None:
        seconds = spent + time.monotonic() - started
        package = {key: part.state_dict() for key, part in state.items()} | {"done": done, "seconds": seconds}
        torch.save(package, f"{path}.part")
        os.replace(f"{path}.part", path)

    with open(curve, "a", encoding="utf-8") as log:
        for number in _progress(name, first, count):
            torch.manual_seed(seed * 1_000_003 + number)
            figures.append(step(number))
            if number % 20 == 19 or number == count - 1:
                means = {key: sum(f[key] for f in figures) / len(figures) for key in figures[0]}
                line = {"step": number + 1, "seconds": round(spent + time.monotonic() - started, 1)}
                print(json.dumps(line | {key: round(value, 4) for key, value in means.items()}), file=log, flush=True)
                figures = []
            if time.monotonic() - saved > SAVE_INTERVAL_SECONDS:
                save(number + 1)
                saved = time.monotonic()
            try:
                clock.check()
            except OutOfTime:
                save(number + 1)
                raise
    if first < count:
        save(count)


def _restore(path: Path, state: dict[str, Any]) -> tuple[int, float]:
    """Load the saved state and return the number of finished steps and the seconds they took."""
    if not path.exists():
        return 0, 0.0
    package = torch.load(path, map_location="cpu", weights_only=True)
    for key, part in state.items():
        part.load_state_dict(package[key])
    return package["done"], package["seconds"]


def _truncate_curve(curve: Path, step: int) -> None:
    """Remove the points after the last saved step, which runs again."""
    if curve.exists():
        lines = [line for line in curve.read_text().splitlines(keepends=True) if json.loads(line)["step"] <= step]
        part = curve.with_suffix(".part")
        part.write_text("".join(lines))
        os.replace(part, curve)


def _progress(name: str, first: int, count: int) -> Iterator[int]:
    bar: Iterator[int] = tqdm(range(first, count), initial=first, total=count, desc=name, disable=None)
    return bar


def cosine(step: int, count: int, warm: int = 100) -> float:
    """Return the factor of the learning rate: a linear warm-up of `warm` steps, then a cosine down to 2%."""
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, count - warm)))
