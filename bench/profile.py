"""Where the time of one step goes: the parts of what the engine does for 20 ms of music, and the operators inside."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from bench.steps import WARM, Ours, measure, ours, prompt, synchronize
from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.codec.decoder import CodecDecoder
from musicgen_bento.codec.native_ops import create_ops
from musicgen_bento.engine.audio_decoder import CHUNK_FRAMES
from musicgen_bento.lm.cpu_decoder import CpuDecoder
from musicgen_bento.lm.sampling import SamplingParams, sample
from musicgen_bento.native import bindings
from musicgen_bento.precision import Precision

STEPS, TOP = 5, 12


def profile(source: Source, precision: Precision, device: torch.device, position: int) -> dict[str, Any]:
    """One clip at a position.

    Returns:
        `parts`: milliseconds by name; `operators`: the costliest, each with calls and milliseconds a step; `calls`: of
        all operators, a step.
    """
    files = loading.open_files(source)
    model = loading.build(files, device, precision)
    shape, language_model = model.weights.shape, ours(model.weights)
    parts = {"language model": median(measure(language_model, 1, position))}
    if not precision.native_kernel:  # by the kernel it is a part of the step
        logits = torch.randn(1, shape.codebooks, shape.codebook_size, device=device)
        rows = SamplingParams.from_lists([0], [1.0], [250], [0.0], device)
        parts["sampling"] = _milliseconds(lambda: sample(logits, rows, torch.tensor([position], device=device)), device)
    team = bindings.create_thread_pool(shape.num_threads()) if device.type == "cpu" else None
    stream = CodecDecoder(model.codec, create_ops(team)).open_stream()
    tokens = torch.randint(shape.codebook_size, (shape.codebooks, CHUNK_FRAMES), device=device)
    parts["codec"] = _milliseconds(lambda: stream.push(tokens), device) / CHUNK_FRAMES
    operators = (_kinds if precision.native_kernel else _operators)(language_model, position)
    return {"precision": precision.name, "position": position, "parts": parts, **operators}


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(STEPS + 1):
        synchronize(device)
        began = time.perf_counter()
        work()
        synchronize(device)
        found.append(1000 * (time.perf_counter() - began))
    return median(found[1:])


def _kinds(language_model: Ours, position: int) -> dict[str, Any]:
    """What the kernel counts of a few steps."""
    decoder = language_model.decoder
    assert isinstance(decoder, CpuDecoder)
    decoder.phase_times()
    steps = len(measure(language_model, 1, position)) + WARM
    return _costliest(
        [{"name": name, "calls": 1, "ms": spent / steps} for name, spent in decoder.phase_times().items()]
    )


def _costliest(found: list[dict[str, Any]]) -> dict[str, Any]:
    found.sort(key=lambda operator: -operator["ms"])
    return {"operators": found[:TOP], "calls": sum(operator["calls"] for operator in found)}


def _operators(language_model: Ours, position: int) -> dict[str, Any]:
    """torch's profiler over a few steps. It makes every call a little longer than it is."""
    device = language_model.device
    tokens = torch.zeros(1, language_model.shape.codebooks, dtype=torch.int64, device=device)
    language_model.begin(1, position, prompt(language_model.shape).to(device))
    language_model.step(tokens)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(STEPS):
            language_model.step(tokens)
        synchronize(device)
    language_model.end()
    found = [
        {
            "name": event.key,
            "calls": event.count / STEPS,
            "ms": (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1000 / STEPS,
        }
        for event in profiler.key_averages()
    ]
    return _costliest(found)
