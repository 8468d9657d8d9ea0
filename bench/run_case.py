"""Measure one backend at one batch size: a process loads the model, runs steps at each position, and ends.

Only one such process runs at a time, so that a backend has the machine to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.backends import engine_backend_name
from bench.machine import device
from bench.measurements import POSITIONS, Case, Measurement
from bench.models import Model
from bench.results import Result
from bench.worker import Worker, WorkerError
from musicgen_bento.device import free_memory
from musicgen_bento.precision import INT8

USABLE_SHARE = 0.85  # of the free memory
PROCESS_BYTES = 0.7e9  # torch and the libraries
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1 + INT8.scale_bytes_per_weight}


def run_cases(
    backend: str, model: Model, batch: int, number: int, result: Result, folder: Path, log: Callable[[str], None]
) -> None:
    """Measure the cases of one backend and batch size in one round; a failure goes into the measurement's note.

    Args:
        backend: name of the backend.
        model: the model to load.
        batch: number of clips.
        number: number of the round, from 0.
        result: receives the measurements.
        folder: folder for the worker's log.
        log: called with each line of progress.
    """
    remaining = [Case(batch, position) for position in POSITIONS]
    try:
        _check_memory(PROCESS_BYTES + model.num_params * _weight_bytes(backend))
        with Worker(backend, model, folder) as worker:
            earlier = result.load_seconds.get(backend, worker.load_seconds)
            result.load_seconds[backend] = min(earlier, worker.load_seconds)
            while remaining:
                position = remaining[0].position
                _check_memory(_cache_bytes(backend, model, remaining[0]))
                ms = float(worker.call("steps", batch=batch, position=position))
                log(f"  {backend}, batch {batch}, position {position}: {ms:.1f} ms per step")
                result.measurements.append(Measurement(backend, remaining.pop(0), number, ms))
            if batch == 1:
                result.peak_gb[backend] = max(result.peak_gb.get(backend, 0.0), float(worker.call("memory")))
    except WorkerError as error:
        log(f"  {backend}, batch {batch}: {error}")
        result.measurements += [Measurement(backend, case, number, None, str(error)) for case in remaining]


def _check_memory(required: float) -> None:
    """Raise WorkerError unless the bytes are free: when memory runs out, other processes may be killed too."""
    free = free_memory(device())
    if required > USABLE_SHARE * free:
        raise WorkerError(f"not enough memory: {required / 1e9:.1f} GB required, {free / 1e9:.1f} GB free")


def _cache_bytes(backend: str, model: Model, case: Case) -> float:
    """Estimate the memory of a case. The baselines hold a part of the cache twice while it grows."""
    shape = model.shape
    elements = 2 * case.batch * (case.position + 50) * 2 * shape.layers * shape.dim
    eight_bit = device().type == "cpu" and backend in (engine_backend_name("float16"), engine_backend_name("int8"))
    return 1.25 * elements * (1 if eight_bit else _weight_bytes(backend))


def _weight_bytes(backend: str) -> float:
    """Return the bytes of one weight; AudioCraft chooses its precision by device."""
    return WEIGHT_BYTES.get(backend.rpartition(" ")[2], 4 if device().type == "cpu" else 2)
