"""Profile of one step: the time of the engine's parts for 20 ms of audio, and of the operators inside a step."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from bench.steps import (
    WARMUP_STEPS,
    EngineBackend,
    create_engine_backend,
    measure_steps,
    random_prompt,
    synchronize,
)
from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.codec.decoder import CodecDecoder
from musicgen_bento.codec.native_ops import create_ops
from musicgen_bento.engine.audio_decoder import CHUNK_FRAMES
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.sampling import SamplingParams, sample
from musicgen_bento.native import bindings
from musicgen_bento.precision import Precision

NUM_STEPS = 5
MAX_OPERATORS = 12  # in the table


def profile(source: Source, precision: Precision, device: torch.device, position: int) -> dict[str, Any]:
    """Profile a step of one clip at a position.

    Returns:
        `parts`: milliseconds by name; `operators`: the slowest, each with calls and milliseconds a step; `calls`: calls
        of all operators a step.
    """
    files = loading.open_files(source)
    model = loading.build(files, device, precision)
    shape, backend = model.weights.shape, create_engine_backend(model.weights)
    parts = {"language model": median(measure_steps(backend, 1, position))}
    if not precision.native_kernel:  # the kernel samples within its step
        logits = torch.randn(1, shape.codebooks, shape.codebook_size, device=device)
        sampling = SamplingParams.from_lists([0], [1.0], [250], [0.0], device)
        noise_steps = torch.tensor([position], device=device)
        parts["sampling"] = _milliseconds(lambda: sample(logits, sampling, noise_steps), device)
    threads = bindings.create_thread_pool(shape.num_threads()) if device.type == "cpu" else None
    stream = CodecDecoder(model.codec, create_ops(threads)).open_stream()
    tokens = torch.randint(shape.codebook_size, (shape.codebooks, CHUNK_FRAMES), device=device)
    parts["codec"] = _milliseconds(lambda: stream.push(tokens), device) / CHUNK_FRAMES
    operators = (_phase_times if precision.native_kernel else _operator_times)(backend, position)
    return {"precision": precision.name, "position": position, "parts": parts, **operators}


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(NUM_STEPS + 1):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(1000 * (time.perf_counter() - started))
    return median(times[1:])  # without the warm-up


def _phase_times(backend: EngineBackend, position: int) -> dict[str, Any]:
    """Return the kernel's phase times, averaged over a few steps."""
    decoder = backend.decoder
    assert isinstance(decoder, CpuDecoder)
    decoder.phase_times()  # resets the counters
    steps = len(measure_steps(backend, 1, position)) + WARMUP_STEPS
    return _slowest([{"name": name, "calls": 1, "ms": ms / steps} for name, ms in decoder.phase_times().items()])


def _slowest(operators: list[dict[str, Any]]) -> dict[str, Any]:
    operators.sort(key=lambda operator: -operator["ms"])
    return {"operators": operators[:MAX_OPERATORS], "calls": sum(operator["calls"] for operator in operators)}


def _operator_times(backend: EngineBackend, position: int) -> dict[str, Any]:
    """Run torch's profiler over a few steps. It makes every call a little longer."""
    device = backend.device
    tokens = torch.zeros(1, backend.shape.codebooks, dtype=torch.int64, device=device)
    backend.begin(1, position, random_prompt(backend.shape).to(device))
    backend.step(tokens)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(NUM_STEPS):
            backend.step(tokens)
        synchronize(device)
    backend.end()
    operators = [
        {
            "name": event.key,
            "calls": event.count / NUM_STEPS,
            "ms": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / NUM_STEPS,
        }
        for event in profiler.key_averages()
    ]
    return _slowest(operators)
