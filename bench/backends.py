"""The process of one backend: `python -m bench.backends NAME MODEL`.

It loads the model, reports how long that took, and executes commands, one line of JSON each, until standard input ends.
The reply to a command that fails contains the error, and the process continues.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch

from bench import machine
from bench.machine import device
from bench.steps import Backend, load_engine_backend, measure_steps, synchronize
from musicgen_bento.checkpoint.resolve import resolve_model
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.native import bindings
from musicgen_bento.native.mmap_tensor import MmapTensor
from musicgen_bento.precision import supported_precisions

ENGINE = "musicgen-bento"
ENGINE_BACKENDS = tuple(f"{ENGINE} {precision}" for precision in ("float32", "bfloat16", "float16", "int8"))
BASELINES = ("audiocraft", "transformers float32", "transformers bfloat16")
BANDWIDTH = "bandwidth"  # a worker without a model, which measures the memory bandwidth
BANDWIDTH_REPEATS = 6


def engine_backend_name(precision: str) -> str:
    """Return the name of this project's backend in a precision."""
    return f"{ENGINE} {precision}"


def engine_precision(name: str) -> str | None:
    """Return the precision of this project's backend of that name; None for a baseline."""
    engine, _, precision = name.partition(" ")
    return precision if engine == ENGINE else None


def backend_names() -> tuple[str, ...]:
    """Return the names of the backends that this machine can run; int8 needs a CPU."""
    engine_backends = ENGINE_BACKENDS if device().type == "cpu" else ENGINE_BACKENDS[:-1]
    return (*engine_backends, *BASELINES)


def load_backend(name: str, source: Source) -> Backend:
    """Load the backend of that name."""
    from bench.baselines import AudioCraft, Transformers

    library, _, precision = name.partition(" ")
    if library == ENGINE:
        return load_engine_backend(source, supported_precisions(device())[precision], device())
    if library == "audiocraft":
        return AudioCraft(source, device())
    return Transformers(source, getattr(torch, precision), device())


def memory_bandwidth() -> float:
    """Measure the memory bandwidth in bytes a second: the best of several reads of 1 GB, or of 8 GB of GPU memory."""
    if device().type == "cuda":
        data = torch.ones(2**31, device=device())
        read: Callable[[], object] = data.sum
    else:
        data = MmapTensor(2**28, huge=True).tensor.fill_(1)  # allocated and read as the kernel's matrices are
        threads = bindings.create_thread_pool(torch.get_num_threads())
        read = data.sum if threads is None else partial(_read, threads, data)
    times = []
    for _ in range(BANDWIDTH_REPEATS):
        synchronize(device())
        started = time.perf_counter()
        read()
        synchronize(device())
        times.append(time.perf_counter() - started)
    return data.nbytes / min(times)


def _read(threads: bindings.ThreadPool, data: torch.Tensor) -> None:
    bindings.library().bench_read_bandwidth(threads.handle, data.data_ptr(), data.nbytes)


def peak_gb() -> float:
    """Return the peak memory of the process in GB; on a GPU that of the tensors."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return machine.peak_gb()


class BackendWorker:
    """The commands that one worker process executes.

    Args:
        name: name of the backend, or `BANDWIDTH`.
        model: name of the model.
    """

    def __init__(self, name: str, model: str) -> None:
        self._name, self._source = name, resolve_model(model, any_model=True)
        self._backend = None if name == BANDWIDTH else load_backend(name, self._source)

    def steps(self, batch: int, position: int) -> float:
        """Return the median milliseconds of a step."""
        assert self._backend is not None
        return median(measure_steps(self._backend, batch, position))

    def memory(self) -> float:
        """Return the peak memory so far, in GB."""
        return peak_gb()

    def bandwidth(self) -> float:
        """Return the memory bandwidth in bytes a second."""
        return memory_bandwidth()

    def profile(self, position: int) -> dict[str, Any]:
        """Profile one step of a newly loaded model, with T5 and the codec; see `bench.profile.profile`."""
        from bench.profile import profile

        self._backend = None
        precision = engine_precision(self._name)
        assert precision is not None
        return profile(self._source, supported_precisions(device())[precision], device(), position)


def main(name: str, model: str) -> None:
    """Load a backend and execute commands until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be read as a reply
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")  # the kernel kills this process first if memory runs out
    workers: list[BackendWorker] = []

    def load() -> float:
        started = time.perf_counter()
        workers.append(BackendWorker(name, model))
        return time.perf_counter() - started

    _reply(replies, load)
    for line in sys.stdin if workers else ():
        arguments = json.loads(line)
        command = getattr(workers[0], arguments.pop("command"))
        _reply(replies, command, **arguments)


def _reply(replies: IO[str], command: Callable[..., Any], **arguments: Any) -> None:
    try:
        reply = {"result": command(**arguments)}
    except Exception as error:
        text = " ".join(str(error).split())
        reply = {"error": f"{type(error).__name__}: {text[:120]}"}
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
