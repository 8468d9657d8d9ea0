"""Graphs for ONNX Runtime: products in 8 bits, and whose business a row is; memory that is given back."""

from __future__ import annotations

import pytest
import torch

from musicgen_bento.engine.onnx_graph import BLOCK, Graph, Run, pack
from tests.matrices import a_weight, some_rows


@pytest.fixture
def weight() -> torch.Tensor:
    return a_weight()


@pytest.fixture
def rows() -> torch.Tensor:
    return some_rows()


def times(rows: torch.Tensor, weight: torch.Tensor, *, int8: bool = True, fine: bool = False) -> torch.Tensor:
    """Rows [R, in] with a matrix [out, in], by a graph of nothing else."""
    graph = Graph()
    x = graph.input("x", torch.float32, ["R", 1, weight.shape[1]])
    graph.output("made", graph.times(x, weight, int8=int8, fine=fine), ["R", 1, len(weight)])
    x, made = rows.clone()[:, None], torch.full((len(rows), 1, len(weight)), torch.nan)
    graph.program(2).bind({"x": x}, {"made": made})()
    return made[:, 0]


@pytest.mark.parametrize(("int8", "fine", "error"), [(False, False, 1e-6), (True, False, 0.02), (True, True, 0.02)])
def test_nearly_the_same(int8: bool, fine: bool, error: float, weight: torch.Tensor, rows: torch.Tensor) -> None:
    wanted, made = rows.double() @ weight.double().T, times(rows, weight, int8=int8, fine=fine).double()
    assert made.isfinite().all()
    there = wanted.norm(dim=1) > 0
    assert ((made - wanted).norm(dim=1)[there] / wanted.norm(dim=1)[there]).max() < error
    assert (made[~there] == 0).all()
    assert made[:, 3].abs().max() < 1e-9


def test_fine_rows_are_a_hundred_times_as_near(weight: torch.Tensor, rows: torch.Tensor) -> None:
    """Beside the same matrix in 8 bits, whose own error no row mends."""
    packed, scales = pack(weight)
    held = ((packed.double() - 128) * scales.double()[:, :, None]).flatten(1)
    wanted = rows.double() @ held.T
    coarse, fine = (((times(rows, weight, fine=fine) - wanted).norm() / wanted.norm()).item() for fine in (False, True))
    assert fine < coarse / 100


@pytest.mark.parametrize("fine", [False, True])
def test_int8_is_blind_to_company(fine: bool, weight: torch.Tensor, rows: torch.Tensor) -> None:
    together = times(rows, weight, fine=fine)
    for begin, end in ((0, 1), (5, 6), (7, 20), (1, 40)):
        assert torch.equal(times(rows[begin:end], weight, fine=fine), together[begin:end])


@pytest.mark.parametrize("fine", [False, True])
def test_int8_sums_do_not_saturate(fine: bool) -> None:
    """The largest weights times the largest inputs, summed with one sign: what 16 bits would not hold."""
    made = times(torch.full((3, 1024), 2.0), torch.full((16, 1024), 0.5), fine=fine)
    assert torch.allclose(made, torch.tensor(1024.0), rtol=1e-5)


def test_a_row_need_not_be_whole_blocks(rows: torch.Tensor) -> None:
    width = BLOCK + 8
    weight = torch.randn(16, width)
    wanted = rows[:, :width] @ weight.T
    for fine in (False, True):
        made = times(rows[:, :width], weight, fine=fine)
        assert ((made - wanted).norm() / wanted.norm()) < 0.02


def test_a_run_reads_what_is_there_then() -> None:
    graph = Graph()
    x = graph.input("x", torch.float32, ["R", 2])
    graph.output("twice", graph.op("Add", x, x), ["R", 2])
    given, made = torch.ones(1, 2), torch.empty(1, 2)
    run: Run = graph.program(1).bind({"x": given}, {"twice": made})
    run()
    assert made.tolist() == [[2, 2]]
    given.fill_(3)
    run()
    assert made.tolist() == [[6, 6]]
