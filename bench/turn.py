"""A contestant's turn: a process that loads the model, makes steps of one batch size at each position, and ends.

One at a time, so that whoever is measured has the machine for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.machine import device
from bench.models import Model
from bench.results import Result
from bench.rounds import POSITIONS, Cell, Visit
from bench.worker import Worker, WorkerError
from musicgen_bento.device import free_memory
from musicgen_bento.precision import INT8

USABLE = 0.85  # of what is free
PROCESS = 0.7e9  # torch and the libraries
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1 + INT8.scale_bytes_per_weight}  # of a number in a matrix


def turn(
    name: str, model: Model, batch: int, number: int, result: Result, folder: Path, say: Callable[[str], None]
) -> None:
    """One contestant, one batch size, one round. What goes wrong is in its note."""
    left = [Cell(batch, position) for position in POSITIONS]
    try:
        _fits(PROCESS + model.numbers * _itemsize(name))
        with Worker(name, model, folder) as worker:
            result.load_s[name] = min(result.load_s.get(name, worker.load_s), worker.load_s)
            while left:
                _fits(_cache_bytes(name, model, left[0]))
                ms = float(worker.ask("steps", batch=batch, position=left[0].position))
                say(f"  {name}, batch {batch}, position {left[0].position}: {ms:.1f} ms a step")
                result.visits.append(Visit(name, left.pop(0), number, ms))
            if batch == 1:
                result.peak_gb[name] = max(result.peak_gb.get(name, 0.0), float(worker.ask("memory")))
    except WorkerError as error:
        say(f"  {name}, batch {batch}: {error}")
        result.visits += [Visit(name, cell, number, None, str(error)) for cell in left]


def _fits(needed: float) -> None:
    """Make sure of memory before it is taken: where it runs out, more than the contestant may go."""
    free = free_memory(device())
    if needed > USABLE * free:
        raise WorkerError(f"no memory: {needed / 1e9:.1f} GB wanted, {free / 1e9:.1f} GB free")


def _cache_bytes(name: str, model: Model, cell: Cell) -> float:
    """About what a contestant takes for a cell; the peers hold a part of the cache twice while it grows."""
    shape = model.shape
    numbers = 2 * cell.batch * (cell.position + 50) * 2 * shape.layers * shape.dim
    on_cpu = {"ours float16": 1, "ours int8": 1} if device().type == "cpu" else {}  # not as the matrices
    return 1.25 * numbers * on_cpu.get(name, _itemsize(name))


def _itemsize(name: str) -> float:
    return BYTES.get(name.rpartition(" ")[2], 4 if device().type == "cpu" else 2)  # AudioCraft chooses by device
