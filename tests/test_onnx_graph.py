"""Graphs for ONNX Runtime."""

from __future__ import annotations

import torch

from musicgen_bento.engine.onnx_graph import Graph, Run


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
