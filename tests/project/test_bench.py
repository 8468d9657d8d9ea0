"""The benchmark: its arithmetic, its backends, and a quick run end to end with a tiny model."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench import machine, plots, report, roofline, targets
from bench.backends import load_backend
from bench.baselines import AudioCraft
from bench.load_test import ClipTiming, LoadTest
from bench.machine import ROOT
from bench.measurements import (
    POSITIONS,
    Case,
    Measurement,
    clip_seconds,
    clip_seconds_by_round,
    median_ratio,
    num_steps,
)
from bench.models import Model, known_model, write
from bench.results import SUMMARY, Result, ServiceResult
from bench.run import QUICK_SECONDS, Plan, Run
from bench.run_case import run_cases
from bench.steps import CFG_COEF, CudaGraphBackend, measure_steps, random_prompt
from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.lm.cuda_graph_decoder import CudaGraphDecoder, GraphKey
from musicgen_bento.lm.kv_cache.batch import LENGTH_STEP
from musicgen_bento.precision import BFLOAT16, FLOAT16_WEIGHTS, FLOAT32, FLOAT32_NATIVE, INT8
from tests.support.tiny_checkpoints import RandomModelConfig
from tests.support.tiny_models import CPU, MONO, STEREO, folder, load

FLOAT32_BACKENDS = ("musicgen-bento float32", "audiocraft", "transformers float32")

# ---- measurements


def test_clip_seconds_is_the_sum_of_the_steps() -> None:
    ms = {position: 100 + 0.05 * position for position in POSITIONS}  # linear, so the sum is exact
    assert clip_seconds(ms, 1503) == pytest.approx(sum(100 + 0.05 * p for p in range(1503)) / 1000)
    assert clip_seconds(ms, 60) == pytest.approx(sum(100 + 0.05 * p for p in range(60)) / 1000)
    assert clip_seconds(dict.fromkeys(POSITIONS, 20.0), num_steps(30)) == pytest.approx(30.06)


def test_step_times_are_interpolated_linearly_between_positions() -> None:
    ms = {0: 10.0, 750: 40.0, 1400: 40.0}
    assert clip_seconds(ms, 1500) == pytest.approx((750 * (10 + 40 - 30 / 750) / 2 + 750 * 40) / 1000)


def test_median_ratio_divides_values_of_the_same_round() -> None:
    assert median_ratio({0: 100.0, 1: 10.0, 2: 12.0}, {0: 10.0, 1: 1.0, 2: 1.0}) == 10
    assert median_ratio({0: 3.0, 1: 8.0}, {1: 2.0}) == 4
    assert median_ratio({0: 3.0}, {1: 2.0}) is None


def test_rounds_without_all_positions_give_no_clip_seconds() -> None:
    measurements = [Measurement("a", Case(1, position), number, 20.0) for number in (0, 1) for position in POSITIONS]
    measurements[-1] = Measurement("a", Case(1, 1400), 1, None, "died")
    measurements.append(Measurement("b", Case(1, 0), 0, 1.0))
    assert clip_seconds_by_round(measurements, "a", 30) == {0: pytest.approx(30.06)}


# ---- targets and results


def test_a_target_is_met_or_not_met_or_not_measured() -> None:
    at_least = targets.Target("x", "x", 2)
    at_most = targets.Target("x", "x", 2, at_most=True)
    assert [at_least.verdict(value) for value in (1.9, 2.0, None)] == ["not met", "met", "not measured"]
    assert [at_most.verdict(value) for value in (2.1, 2.0, None)] == ["not met", "met", "not measured"]
    table = targets.targets_table(False, "small", {"first_audio_s": 0.9, "int8_load_s": 3.0})
    assert "| at most 0.7 s | 0.9 s | not met |" in table
    assert "| at most 4 s | 3 s | met |" in table
    assert "| at least 5x |  | not measured |" in targets.targets_table(True, "medium", {})
    assert not targets.targets_table(True, "tiny", {})


def clip_timing(client: int, duration: float, finished: float) -> ClipTiming:
    return ClipTiming(client, duration, 0.0, 0.1, 0.2 + client, finished)


LOAD_TEST = LoadTest(16, (clip_timing(0, 2.0, 4.0), clip_timing(1, 8.0, 8.0)))


def example_result() -> Result:
    result = Result("small", "random/musicgen-small", machine.describe() | {"gpu": None}, True, 30.0, "int8")
    for number in range(3):
        for name, ms in (("audiocraft", 200.0), ("transformers bfloat16", 50.0), ("transformers float32", 140.0)):
            result.measurements += [Measurement(name, Case(1, position), number, ms) for position in POSITIONS]
    for name, ms in (("musicgen-bento float32", 100.0), ("musicgen-bento int8", 20.0)):
        result.measurements += [Measurement(name, Case(1, position), 0, ms) for position in POSITIONS]
    service = ServiceResult("int8", clip_latency={0: 20.0, 1: 25.0, 2: 30.0}, first_audio=[0.5, 0.6])
    service.load_tests.append(LOAD_TEST)
    result.services.append(service)
    result.roofline_ms = {0: 5.0, 750: 10.0, 1400: 15.0}
    result.demo_latency = {0: 1.0}
    result.run_seconds = 100.0
    return result


def test_result_computes_every_figure_of_the_targets_and_the_summary() -> None:
    figures = example_result().figures()
    assert figures["x_realtime"] == pytest.approx(1.2)
    assert figures["x_audiocraft"] == pytest.approx(300.6 / 25)
    assert figures["x_transformers_bf16"] == pytest.approx(75.15 / 25)
    assert figures["x_transformers_float32"] == pytest.approx(1.4)
    assert figures["first_audio_s"] == pytest.approx(0.55)
    assert figures["clients16_audio_s_per_s"] == pytest.approx(10 / 8)
    assert figures["clients16_slowest_over_mean"] == pytest.approx(2 / mean((2, 1)))
    assert figures["demo_x_realtime"] == pytest.approx(10)
    assert figures["int8_peak_gb"] is None
    assert figures["roofline_share"] == pytest.approx(0.5)
    assert set(figures) == {target.key for group in targets.TARGETS.values() for target in group}
    assert tuple(example_result().summary()) == SUMMARY


def test_plots_are_svg() -> None:
    for plot in (plots.step_times(example_result()), plots.load_test_timeline(LOAD_TEST, "small")):
        assert plot.startswith("<svg")
        assert plot.rstrip().endswith("</svg>")
        assert "nan" not in plot
    assert plots.step_times(Result("small", "x", {}, True, 30.0, "int8"))


def test_plot_labels_have_the_order_of_their_lines_without_overlap() -> None:
    result = Result("small", "x", {}, True, 30.0, "int8")
    for name, ms in (("fast", 10.0), ("slowest", 101.0), ("slow", 100.0), ("slower", 100.5)):
        result.measurements += [Measurement(name, Case(1, position), 0, ms) for position in POSITIONS]
    labels = {text: float(y) for y, text in re.findall(r'y="([\d.]+)"[^>]*>(\w+), ', plots.step_times(result))}
    assert sorted(labels, key=labels.__getitem__) == ["slowest", "slower", "slow", "fast"]
    heights = sorted(labels.values())
    assert all(below - above >= 13 for above, below in pairwise(heights))


# ---- a run


def test_a_run_records_the_default_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = Run(known_model("demo"), Plan(quick=True, seconds=1.0, rounds=1, started=0.0), tmp_path, print)
    assert run.result.default_precision == "int8"


# ---- roofline


def test_step_bytes_count_matrices_and_cache() -> None:
    loaded = load(MONO)
    size, shape = loaded.weights.size, loaded.weights.shape
    once_per_clip = 2 * shape.layers * shape.dim**2  # keys and values of the prompt
    assert roofline.step_bytes(shape, FLOAT32_NATIVE, 0).matrices == 4 * (size.num_matmul_params - once_per_clip)
    fused = once_per_clip  # query and output matrices of cross-attention, the same number of weights
    assert roofline.step_bytes(shape, INT8, 0).matrices == int(1.01 * (size.num_matmul_params - once_per_clip - fused))
    assert roofline.step_bytes(shape, FLOAT32_NATIVE, 9, clips=4).cache == 4 * 2 * shape.layers * shape.dim * 2 * 10 * 4
    float32_cache = roofline.step_bytes(shape, FLOAT32_NATIVE, 900).cache
    assert roofline.step_bytes(shape, FLOAT16_WEIGHTS, 900).cache < float32_cache / 2
    float32_bytes = 4 * shape.head_dim  # of one position of a head; int8 has a float32 scale beside each
    ratio = (shape.head_dim + 4) / float32_bytes
    fused_prompt = shape.layers * (16 * shape.heads * (2 * shape.dim + 4) + 4 * shape.dim)
    assert roofline.step_bytes(shape, INT8, 900).cache == float32_cache * ratio + fused_prompt


def test_the_results_page_has_the_roofline_tables_of_the_code() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert roofline.cpu_table() in text
    assert roofline.h200_table() in text
    assert all(text.count(mark) == 1 for marks in report.MARKS.values() for mark in marks)


def test_publish_replaces_only_the_section_of_a_completely_measured_model(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    begin, end = report.MARKS["cpu"]
    page.write_text(f"before\n{begin}\n\n### medium\n\nkept\n\n### small\n\nold\n\n{end}\nafter\n")
    model, result = Model("random/musicgen-tiny", "tiny"), example_result()
    for _ in range(2):
        assert report.publish([(result, model)], page) == []
        text = page.read_text()
        assert text.startswith(f"before\n{begin}\n\n### small\n\n")
        assert text.endswith(f"\n### medium\n\nkept\n\n{end}\nafter\n")
        assert "old" not in text
        assert text.count("](cpu-small-steps.svg)") == 1
    assert json.loads((tmp_path / "cpu-small.json").read_text())["size"] == "small"
    assert (tmp_path / "cpu-small-steps.svg").read_text().startswith("<svg")
    result.run_seconds = 0.0  # interrupted
    result.demo_latency = {0: 2.0}
    assert report.publish([(result, model)], page) == [result]
    assert page.read_text() == text
    assert json.loads((tmp_path / "cpu-small.json").read_text())["run_seconds"] == 100


class KernelCounter(TorchDispatchMode):
    """Count the operators that write memory; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = operator(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor):
            inputs = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
            self.count += output.untyped_storage().data_ptr() not in inputs or operator._schema.is_mutable
        else:
            self.count += "unbind" not in str(operator)
        return output


def test_num_kernels_equals_the_operators_of_a_step() -> None:
    counts = {}
    for layers in (2, 4):
        weights = loading.load(Source("tiny", folder(RandomModelConfig(layers=layers))), CPU, BFLOAT16).weights
        backend = CudaGraphBackend(weights)
        backend.begin(1, 0, random_prompt(weights.shape))
        decoder = backend.decoder
        assert isinstance(decoder, CudaGraphDecoder)
        backend.step(torch.zeros(1, weights.shape.codebooks, dtype=torch.int64))
        with torch.inference_mode(), KernelCounter() as kernels:
            decoder._forward_position(GraphKey(1, LENGTH_STEP, 250, False, True))
        counts[layers] = kernels.count
    assert (counts[4] - counts[2]) / 2 == roofline.KERNELS_PER_LAYER
    assert counts[2] - 2 * roofline.KERNELS_PER_LAYER == roofline.OTHER_KERNELS


# ---- backends


@pytest.mark.parametrize("recipe", [MONO, STEREO], ids=["mono", "stereo"])
def test_all_backends_compute_the_same_logits(recipe: object) -> None:
    """The benchmark therefore compares the time of the same computation."""
    source = Source("tiny", folder(recipe))  # type: ignore[arg-type]
    backends = [load_backend(name, source) for name in FLOAT32_BACKENDS]
    shape = backends[0].shape
    assert CFG_COEF != 1
    for backend in backends:
        backend.begin(2, 0, random_prompt(shape))
    for step in range(5):
        tokens = torch.randint(shape.codebook_size, (2, shape.codebooks), generator=torch.Generator().manual_seed(step))
        logits = [backend.step(tokens) for backend in backends]
        for other in logits[1:]:
            torch.testing.assert_close(other, logits[0], rtol=1e-4, atol=1e-4)
    for backend in backends:
        backend.end()


def test_synthetic_positions_leave_the_state_of_computed_positions() -> None:
    """AudioCraft's streaming state has the same tensor shapes and offsets with synthetic and computed positions."""
    backend = AudioCraft(Source("tiny", folder(MONO)), torch.device("cpu"))
    shape = backend.shape
    tensor_shapes = []
    for synthetic in (0, 6):
        backend.begin(1, synthetic, random_prompt(shape))
        for _ in range(7 - synthetic):
            backend.step(torch.zeros(1, shape.codebooks, dtype=torch.int64))
        state = backend._lm.get_streaming_state()
        tensor_shapes.append({name: tensor.shape for name, tensor in state.items()})
        assert all((tensor == 7).all() for name, tensor in state.items() if name.endswith("offsets"))
        backend.end()
    assert tensor_shapes[0] == tensor_shapes[1]


@pytest.mark.parametrize(
    "name", ["musicgen-bento int8", "musicgen-bento float16", *FLOAT32_BACKENDS, "transformers bfloat16"]
)
def test_steps_of_a_backend_are_timed(name: str) -> None:
    backend = load_backend(name, Source("tiny", folder(MONO)))
    for batch, position in ((1, 0), (3, 20)):
        assert all(ms > 0 for ms in measure_steps(backend, batch, position))


def test_steps_of_the_cuda_graph_backend_are_timed_on_a_cpu() -> None:
    backend = CudaGraphBackend(load(MONO, FLOAT32).weights)
    for batch, position in ((1, 0), (3, 20)):
        assert all(ms > 0 for ms in measure_steps(backend, batch, position))
    assert not backend._sequences


def test_a_random_model_has_the_released_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("tiny", tmp_path)
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    model = Model("random/musicgen-tiny", "tiny")
    assert model.source.is_local
    assert model.shape == load(MONO).weights.shape
    assert model.num_params == load(MONO).weights.size.num_params


def test_a_failure_of_a_backend_is_noted_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("tiny", tmp_path)
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    result, log = example_result(), []
    result.measurements.clear()
    model = Model("random/musicgen-tiny", "tiny")
    run_cases("musicgen-bento float3", model, 1, 0, result, tmp_path, log.append)
    assert [measurement.ms for measurement in result.measurements] == [None] * len(POSITIONS)
    assert {measurement.note for measurement in result.measurements} == {"KeyError: 'float3'"}
    assert log
    note = f"- musicgen-bento float3, 1@0: {result.measurements[0].note}"
    assert note in report.full_report(result, model)


# ---- end to end


@pytest.mark.timeout(1500)
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--size", "tiny", "--seconds", "2", "--rounds", "1"]
    process = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1400
    )
    assert process.returncode == 0, process.stderr
    summary = json.loads(process.stdout.splitlines()[-1])
    assert tuple(summary) == SUMMARY
    assert all(math.isfinite(value) and value > 0 for value in summary.values()), process.stderr
    [result] = json.loads((tmp_path / "results.json").read_text())
    assert result["machine"]["cores"] >= 1
    assert len(result["services"][0]["load_tests"][0]["clips"]) == 16
    assert not [entry for entry in result["measurements"] if entry["note"]]
    assert "The quick run" in (tmp_path / "report.md").read_text()
    assert {file.name for file in tmp_path.glob("*.svg")} == {"tiny-steps.svg", "tiny-clients.svg"}
    assert QUICK_SECONDS < 300
