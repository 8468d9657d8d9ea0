"""The bench: its arithmetic, its contestants, and the short form from end to end on a tiny model."""

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

from bench import bars, limit, machine, plots, prediction, report
from bench.contestant import contestant
from bench.machine import ROOT
from bench.models import Model, known_model, write
from bench.peers import AudioCraft
from bench.results import SUMMARY, Result, Served
from bench.rounds import POSITIONS, Cell, Visit, clip_seconds, clips, ratio, steps_of
from bench.run import QUICK_SECONDS, Plan, Run
from bench.service import Crowd, Told
from bench.steps import CFG_COEF, OursGraphed, measure, prompt
from bench.turn import turn
from musicgen_bento.checkpoint import loading
from musicgen_bento.checkpoint.source import Source
from musicgen_bento.lm.cuda_graph_decoder import LENGTH, CudaGraphDecoder, _Kind
from musicgen_bento.precision import BFLOAT16, FLOAT16_WEIGHTS, FLOAT32, FLOAT32_NATIVE, INT8
from tests.support.tiny_checkpoints import Recipe
from tests.support.tiny_models import CPU, MONO, STEREO, folder, load

NAMES = ("ours float32", "audiocraft", "transformers float32")

# ---- rounds


def test_a_clip_is_the_sum_of_its_steps() -> None:
    ms = {position: 100 + 0.05 * position for position in POSITIONS}  # a straight line: the sum is exact
    assert clip_seconds(ms, 1503) == pytest.approx(sum(100 + 0.05 * p for p in range(1503)) / 1000)
    assert clip_seconds(ms, 60) == pytest.approx(sum(100 + 0.05 * p for p in range(60)) / 1000)
    assert clip_seconds(dict.fromkeys(POSITIONS, 20.0), steps_of(30)) == pytest.approx(30.06)


def test_between_positions_are_straight_lines() -> None:
    ms = {0: 10.0, 750: 40.0, 1400: 40.0}
    assert clip_seconds(ms, 1500) == pytest.approx((750 * (10 + 40 - 30 / 750) / 2 + 750 * 40) / 1000)


def test_ratios_are_of_the_same_round() -> None:
    assert ratio({0: 100.0, 1: 10.0, 2: 12.0}, {0: 10.0, 1: 1.0, 2: 1.0}) == 10
    assert ratio({0: 3.0, 1: 8.0}, {1: 2.0}) == 4
    assert ratio({0: 3.0}, {1: 2.0}) is None


def test_a_round_without_all_positions_is_no_clip() -> None:
    visits = [Visit("a", Cell(1, position), number, 20.0) for number in (0, 1) for position in POSITIONS]
    visits[-1] = Visit("a", Cell(1, 1400), 1, None, "died")
    assert clips([*visits, Visit("b", Cell(1, 0), 0, 1.0)], "a", 30) == {0: pytest.approx(30.06)}


# ---- bars and results


def test_a_bar_is_met_or_not_or_not_measured() -> None:
    least = bars.Bar("x", "x", 2)
    most = bars.Bar("x", "x", 2, most=True)
    assert [least.verdict(value) for value in (1.9, 2.0, None)] == ["not met", "met", "not measured"]
    assert [most.verdict(value) for value in (2.1, 2.0, None)] == ["not met", "met", "not measured"]
    shown = bars.table(False, "small", {"first_audio_s": 0.9, "int8_load_s": 3.0})
    assert "| at most 0.7 s | 0.9 s | not met |" in shown
    assert "| at most 4 s | 3 s | met |" in shown
    assert "| at least 5x |  | not measured |" in bars.table(True, "medium", {})
    assert not bars.table(True, "tiny", {})


def told(client: int, duration: float, last: float) -> Told:
    return Told(client, duration, 0.0, 0.1, 0.2 + client, last)


CROWD = Crowd(16, (told(0, 2.0, 4.0), told(1, 8.0, 8.0)))


def result() -> Result:
    found = Result("small", "random/musicgen-small", machine.describe() | {"gpu": None}, True, 30.0, "int8")
    for number in range(3):
        for name, ms in (("audiocraft", 200.0), ("transformers bfloat16", 50.0), ("transformers float32", 140.0)):
            found.visits += [Visit(name, Cell(1, position), number, ms) for position in POSITIONS]
    found.visits += [Visit("ours float32", Cell(1, position), 0, 100.0) for position in POSITIONS]
    found.served.append(Served("int8", clips={0: 20.0, 1: 25.0, 2: 30.0}, first_audio=[0.5, 0.6]))
    found.served[0].crowds.append(CROWD)
    found.visits += [Visit("ours int8", Cell(1, position), 0, 20.0) for position in POSITIONS]
    found.least_ms = {0: 5.0, 750: 10.0, 1400: 15.0}
    found.demo = {0: 1.0}
    found.took_s = 100.0
    return found


def test_what_is_told_of_a_run() -> None:
    figures = result().figures()
    assert figures["x_realtime"] == pytest.approx(1.2)
    assert figures["x_audiocraft"] == pytest.approx(300.6 / 25)
    assert figures["x_transformers_bf16"] == pytest.approx(75.15 / 25)
    assert figures["x_transformers_float32"] == pytest.approx(1.4)
    assert figures["first_audio_s"] == pytest.approx(0.55)
    assert figures["clients16_audio_s_per_s"] == pytest.approx(10 / 8)
    assert figures["clients16_slowest_over_mean"] == pytest.approx(2 / mean((2, 1)))
    assert figures["demo_x_realtime"] == pytest.approx(10)
    assert figures["int8_peak_gb"] is None
    assert figures["of_limit"] == pytest.approx(0.5)
    assert set(figures) == {bar.key for each in bars.BARS.values() for bar in each}
    assert tuple(result().summary()) == SUMMARY


def test_the_plots_are_drawn() -> None:
    for picture in (plots.steps(result()), plots.timeline(CROWD, "small")):
        assert picture.startswith("<svg")
        assert picture.rstrip().endswith("</svg>")
        assert "nan" not in picture
    assert plots.steps(Result("small", "x", {}, True, 30.0, "int8"))


def test_a_plots_labels_stand_as_their_lines_do() -> None:
    found = Result("small", "x", {}, True, 30.0, "int8")
    for name, ms in (("fast", 10.0), ("slowest", 101.0), ("slow", 100.0), ("slower", 100.5)):
        found.visits += [Visit(name, Cell(1, position), 0, ms) for position in POSITIONS]
    labels = {text: float(y) for y, text in re.findall(r'y="([\d.]+)"[^>]*>(\w+), ', plots.steps(found))}
    assert sorted(labels, key=labels.__getitem__) == ["slowest", "slower", "slow", "fast"]
    heights = sorted(labels.values())
    assert all(below - above >= 13 for above, below in pairwise(heights))


# ---- a run


def test_a_run_knows_the_default_precision_of_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run = Run(known_model("demo"), Plan(quick=True, seconds=1.0, rounds=1, began=0.0), tmp_path, print)
    assert run.result.default == "int8"


# ---- the limit


def test_a_step_reads_its_matrices_and_its_cache() -> None:
    loaded = load(MONO)
    size, shape = loaded.weights.size, loaded.weights.shape
    once_a_clip = 2 * shape.layers * shape.dim**2  # keys and values of the prompt
    assert limit.moved(shape, FLOAT32_NATIVE, 0).matrices == 4 * (size.num_matmul_params - once_a_clip)
    folded = once_a_clip  # as many numbers again: a query's matrix, and the one behind cross-attention
    assert limit.moved(shape, INT8, 0).matrices == int(1.01 * (size.num_matmul_params - once_a_clip - folded))
    assert limit.moved(shape, FLOAT32_NATIVE, 9, clips=4).cache == 4 * 2 * shape.layers * shape.dim * 2 * 10 * 4
    assert limit.moved(shape, FLOAT16_WEIGHTS, 900).cache < limit.moved(shape, FLOAT32_NATIVE, 900).cache / 2
    wide = 4 * shape.head_dim  # bytes of a head's numbers, and beside those in bytes a scale
    ratio = (shape.head_dim + 4) / wide
    prompt = shape.layers * (16 * shape.heads * (2 * shape.dim + 4) + 4 * shape.dim)
    assert limit.moved(shape, INT8, 900).cache == limit.moved(shape, FLOAT32_NATIVE, 900).cache * ratio + prompt


def test_the_document_has_the_limits_of_the_code() -> None:
    text = report.PAGE.read_text(encoding="utf-8")
    assert limit.table() in text
    assert prediction.table() in text
    assert all(text.count(mark) == 1 for marks in report.MARKS.values() for mark in marks)


def test_results_go_between_the_marks(tmp_path: Path) -> None:
    """A model's in the place of its last ones; those of another model stay."""
    page, pictures = tmp_path / "page.md", tmp_path / "performance"
    begin, end = report.MARKS["cpu"]
    page.write_text(f"before\n{begin}\n\n### medium\n\nkept\n\n### small\n\nold\n\n{end}\nafter\n")
    model, found = Model("random/musicgen-tiny", "tiny"), result()
    for _ in range(2):
        assert report.publish([(found, model)], page, pictures) == []
        text = page.read_text()
        assert text.startswith(f"before\n{begin}\n\n### small\n\n")
        assert text.endswith(f"\n### medium\n\nkept\n\n{end}\nafter\n")
        assert "old" not in text
        assert text.count("](performance/cpu-small-steps.svg)") == 1
    assert json.loads((pictures / "cpu-small.json").read_text())["size"] == "small"
    assert (pictures / "cpu-small-steps.svg").read_text().startswith("<svg")
    found.took_s = 0.0  # it was ended early
    found.demo = {0: 2.0}
    assert report.publish([(found, model)], page, pictures) == [found]
    assert page.read_text() == text
    assert json.loads((pictures / "cpu-small.json").read_text())["took_s"] == 100


class Kernels(TorchDispatchMode):
    """Counts the operators that make something: views make nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = operator(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
            self.count += made.untyped_storage().data_ptr() not in given or operator._schema.is_mutable
        else:
            self.count += "unbind" not in str(operator)
        return made


def test_the_kernels_of_a_step_are_counted() -> None:
    found = {}
    for layers in (2, 4):
        weights = loading.load(Source("tiny", folder(Recipe(layers=layers))), CPU, BFLOAT16).weights
        step = OursGraphed(weights)
        step.begin(1, 0, prompt(weights.shape))
        decoder = step.decoder
        assert isinstance(decoder, CudaGraphDecoder)
        step.step(torch.zeros(1, weights.shape.codebooks, dtype=torch.int64))
        with torch.inference_mode(), Kernels() as kernels:
            decoder._position(_Kind(1, LENGTH, 250, False, True))
        found[layers] = kernels.count
    assert (found[4] - found[2]) / 2 == prediction.A_LAYER
    assert found[2] - 2 * prediction.A_LAYER == prediction.BESIDE


# ---- contestants


@pytest.mark.parametrize("recipe", [MONO, STEREO], ids=["mono", "stereo"])
def test_all_say_the_same_of_the_same_tokens(recipe: object) -> None:
    """So what is compared is the time of one and the same computation."""
    source = Source("tiny", folder(recipe))  # type: ignore[arg-type]
    found = {name: contestant(name, source) for name in NAMES}
    shape = found[NAMES[0]].shape
    assert CFG_COEF != 1
    for model in found.values():
        model.begin(2, 0, prompt(shape))
    for step in range(5):
        tokens = torch.randint(shape.codebook_size, (2, shape.codebooks), generator=torch.Generator().manual_seed(step))
        said = [model.step(tokens) for model in found.values()]
        for other in said[1:]:
            torch.testing.assert_close(other, said[0], rtol=1e-4, atol=1e-4)
    for model in found.values():
        model.end()


def test_made_up_positions_are_as_read_ones() -> None:
    """AudioCraft's streaming state has the same tensors whether it has read so many positions or made them up."""
    model = AudioCraft(Source("tiny", folder(MONO)), torch.device("cpu"))
    shape = model.shape
    sizes = []
    for made_up in (0, 6):
        model.begin(1, made_up, prompt(shape))
        for _ in range(7 - made_up):
            model.step(torch.zeros(1, shape.codebooks, dtype=torch.int64))
        state = model._lm.get_streaming_state()
        sizes.append({name: tensor.shape for name, tensor in state.items()})
        assert all((tensor == 7).all() for name, tensor in state.items() if name.endswith("offsets"))
        model.end()
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["ours int8", "ours float16", *NAMES, "transformers bfloat16"])
def test_a_turn(name: str) -> None:
    model = contestant(name, Source("tiny", folder(MONO)))
    for batch, position in ((1, 0), (3, 20)):
        assert all(ms > 0 for ms in measure(model, batch, position))


def test_a_turn_as_on_a_gpu() -> None:
    model = OursGraphed(load(MONO, FLOAT32).weights)
    for batch, position in ((1, 0), (3, 20)):
        assert all(ms > 0 for ms in measure(model, batch, position))
    assert not model._sequences


def test_a_random_model_is_in_the_released_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("tiny", tmp_path)
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    model = Model("random/musicgen-tiny", "tiny")
    assert model.source.is_local
    assert model.shape == load(MONO).weights.shape
    assert model.numbers == load(MONO).weights.size.num_params


def test_what_goes_wrong_with_a_contestant_is_in_its_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("tiny", tmp_path)
    monkeypatch.setenv("AUDIOCRAFT_CACHE_DIR", str(tmp_path))
    found, heard = result(), []
    found.visits.clear()
    turn("ours float3", Model("random/musicgen-tiny", "tiny"), 1, 0, found, tmp_path, heard.append)
    assert [visit.ms for visit in found.visits] == [None] * len(POSITIONS)
    assert {visit.note for visit in found.visits} == {"KeyError: 'float3'"}
    assert heard
    assert f"- ours float3, 1@0: {found.visits[0].note}" in report.told(found, Model("random/musicgen-tiny", "tiny"))


# ---- all of it


@pytest.mark.timeout(1500)
def test_the_short_form(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "--quick", "--size", "tiny", "--seconds", "2", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1400
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert tuple(summary) == SUMMARY
    assert all(math.isfinite(value) and value > 0 for value in summary.values()), done.stderr
    [found] = json.loads((tmp_path / "results.json").read_text())
    assert found["machine"]["cores"] >= 1
    assert len(found["served"][0]["crowds"][0]["clips"]) == 16
    assert not [visit for visit in found["visits"] if visit["note"]]
    assert "The short form" in (tmp_path / "report.md").read_text()
    assert {file.name for file in tmp_path.glob("*.svg")} == {"tiny-steps.svg", "tiny-clients.svg"}
    assert QUICK_SECONDS < 300
