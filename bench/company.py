"""The contestants' processes: all of them in memory where they fit, else one at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import psutil
import torch

from bench.models import Model
from bench.rounds import Cell, Visit, turns
from bench.worker import Worker, WorkerError

USABLE = 0.85  # of what is free
PROCESS = 0.7e9  # torch and the libraries, in each process
SETTLE = 0.3  # seconds in which the threads of the last one fall asleep
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


class Company:
    """Asks each contestant when its turn comes.

    Args:
        names: of the contestants.
        model: that all of them load.
        folder: for their logs.
        say: told what happens.
    """

    def __init__(self, names: Sequence[str], model: Model, folder: Path, say: Callable[[str], None]) -> None:
        self.names, self._model, self._folder, self._say = tuple(names), model, folder, say
        self._workers: dict[str, Worker] = {}
        self._failed: dict[str, str] = {}
        self.load_s: dict[str, float] = {}
        self.peak_gb: dict[str, float] = {}
        largest = max(self._cache_bytes(name, Cell(1, 1500)) for name in names)
        self.together = sum(map(self._bytes, names)) + largest < USABLE * free()

    def visits(self, rounds: int, cells: Sequence[Cell]) -> list[Visit]:
        """Every contestant at every cell, in turns."""
        return [
            self.visit(name, cell, number) for number, name, cell in turns(rounds, self.names, cells, self.together)
        ]

    def visit(self, name: str, cell: Cell, number: int) -> Visit:
        """One contestant at one cell. What goes wrong is in its note."""
        try:
            worker = self._worker(name)
            needed = self._cache_bytes(name, cell)
            if needed > USABLE * free():
                raise WorkerError(f"no memory: {needed / 1e9:.1f} GB wanted, {free() / 1e9:.1f} GB free")
            time.sleep(SETTLE)
            ms = float(worker.ask("steps", batch=cell.batch, position=cell.position))
            if cell.batch == 1:
                self.peak_gb[name] = max(self.peak_gb.get(name, 0.0), float(worker.ask("memory")))
        except WorkerError as error:
            self._say(f"  {name}, batch {cell.batch}, position {cell.position}: {error}")
            return Visit(name, cell, number, None, str(error))
        self._say(f"  {name}, batch {cell.batch}, position {cell.position}: {ms:.1f} ms a step")
        return Visit(name, cell, number, ms)

    def _worker(self, name: str) -> Worker:
        """Its process. One that could not be loaded is not tried again, one that died is."""
        if name in self._failed:
            raise WorkerError(self._failed[name])
        if name in self._workers and self._workers[name].alive:
            return self._workers[name]
        if not self.together:
            self.close()
        try:
            if self._bytes(name) > USABLE * free():
                raise WorkerError(f"no memory: {self._bytes(name) / 1e9:.1f} GB wanted, {free() / 1e9:.1f} GB free")
            self._workers[name] = worker = Worker(name, self._model, self._folder)
        except WorkerError as error:
            self._failed[name] = f"not loaded: {error}"
            raise
        self.load_s.setdefault(name, worker.load_s)
        return worker

    def _bytes(self, name: str) -> float:
        """About what a contestant's process takes."""
        return PROCESS + self._model.numbers * _itemsize(name)

    def _cache_bytes(self, name: str, cell: Cell) -> float:
        """About what it takes more for a cell; the peers hold a part of the cache twice while it grows."""
        shape = self._model.shape
        numbers = 2 * cell.batch * (cell.position + 20) * 2 * shape.layers * shape.dim
        itemsize = 4 if name.endswith("int8") or name == "ours float16" else _itemsize(name)
        return 1.15 * numbers * itemsize

    def close(self) -> None:
        """End them all."""
        for worker in self._workers.values():
            worker.stop()
        self._workers.clear()

    def __enter__(self) -> Company:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _itemsize(name: str) -> int:
    return BYTES.get(name.rpartition(" ")[2], 2 if torch.cuda.is_available() else 4)


def free() -> float:
    """Bytes that nobody uses, of what the contestants run on."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[0])
    return float(psutil.virtual_memory().available)
