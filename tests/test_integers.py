"""Products in 8 bits: how near they are, and whose business a row is."""

from __future__ import annotations

import pytest
import torch

from musicgen_bento.engine import integers
from musicgen_bento.engine.onnx_graph import Graph

WITHIN = 1e4  # more than the largest number of `some_rows`


@pytest.fixture(params=[True, False], ids=["signed", "unsigned"], autouse=True)
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that multiplies bytes with signs exactly, and one that does not; as far as this one can be either."""
    exact = integers._signed_sums_are_exact()
    if request.param and not exact:
        pytest.skip("this processor's sums with signs are not exact, and it does not use them")
    monkeypatch.setattr(integers, "_signed_sums_are_exact", lambda: request.param)


def times(rows: torch.Tensor, weight: torch.Tensor, within: float | None = None) -> torch.Tensor:
    """Rows [R, in] with a matrix [out, in], by a graph of nothing else."""
    graph = Graph()
    x = graph.input("x", torch.float32, ["R", 1, 1, weight.shape[1]])
    graph.output("made", integers.times(graph, x, weight, within), ["R", 1, 1, len(weight)])
    x, made = rows.clone()[:, None, None], torch.full((len(rows), 1, 1, len(weight)), torch.nan)
    graph.program(2).bind({"x": x}, {"made": made})()
    return made[:, 0, 0]


def held(weight: torch.Tensor) -> torch.Tensor:
    """The matrix [out, in] as 8 bits have it."""
    packed, scales = integers.pack(weight)
    return packed.T.double() * scales.double()[:, None]


def test_nearly_the_same(weight: torch.Tensor, rows: torch.Tensor) -> None:
    wanted, made = rows.double() @ weight.double().T, times(rows, weight).double()
    assert made.isfinite().all()
    there = wanted.norm(dim=1) > 0
    assert ((made - wanted).norm(dim=1)[there] / wanted.norm(dim=1)[there]).max() < 0.02
    assert (made[~there] == 0).all()
    assert made[:, 3].abs().max() < 1e-9


def test_the_rows_keep_sixteen_bits(weight: torch.Tensor, rows: torch.Tensor) -> None:
    """Beside the same matrix in 8 bits, whose own error no row mends."""
    wanted, made = rows.double() @ held(weight).T, times(rows, weight).double()
    there = wanted.norm(dim=1) > 0
    assert ((made - wanted).norm(dim=1)[there] / wanted.norm(dim=1)[there]).max() < 5e-4


def test_rows_within_a_bound(weight: torch.Tensor, rows: torch.Tensor) -> None:
    farthest = float(rows.abs().max())
    made = times(rows, weight, farthest).double() - rows.double() @ held(weight).T
    assert (made.abs().amax(dim=0) <= 256 * farthest / 2**15 * held(weight).abs().amax(dim=1) + 1e-9).all()


@pytest.mark.parametrize("within", [None, WITHIN])
def test_blind_to_company(within: float | None, weight: torch.Tensor, rows: torch.Tensor) -> None:
    together = times(rows, weight, within)
    for begin, end in ((0, 1), (5, 6), (7, 20), (1, 40)):
        assert torch.equal(times(rows[begin:end], weight, within), together[begin:end])


def test_sums_do_not_saturate() -> None:
    """The largest weights times the largest inputs, summed with one sign: what 16 bits would not hold."""
    for within in (None, 2.0):
        made = times(torch.full((3, 1024), 2.0), torch.full((16, 1024), 0.5), within)
        assert torch.allclose(made, torch.tensor(1024.0), rtol=1e-4)


def test_what_is_no_number_stays_so(weight: torch.Tensor, rows: torch.Tensor) -> None:
    rows[2, 7], rows[8, 0] = torch.nan, torch.inf
    made = times(rows, weight)
    assert made[[2, 8]].isnan().any(dim=1).all()
    others = [row for row in range(len(rows)) if row not in (2, 8)]
    assert made[others].isfinite().all()


def test_any_width_will_do() -> None:
    weight, rows = torch.randn(17, 43), torch.randn(3, 43)
    wanted = rows @ weight.T
    assert ((times(rows, weight) - wanted).norm() / wanted.norm()) < 0.02


def test_the_largest_bytes_beside_each_other() -> None:
    """A row whose two parts are as large as parts can be, all of one sign."""
    level = 1 / integers.LEVELS
    row = torch.full((2, 64), 1 + level * 0.49)
    made = times(row, torch.full((16, 64), 0.5), within=1.0)
    assert torch.allclose(made, row.sum(dim=1)[:, None] * 0.5, rtol=1e-4)
