"""Products of rows with matrices in 8 bits, as operators of a graph.

Each row of a matrix, an output channel, has one scale. What it is multiplied with has sixteen bits in two parts: a row
in 8 bits, and in another 8 what their rounding leaves over. Both parts go through the matrix together, which is read
once. All sums are of whole numbers, so that they do not depend on who else is multiplied.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from musicgen_bento.engine.onnx_graph import CONTRIB, Graph

LEVELS = 127
"""Of a number in 8 bits, either way."""

FINER = 2 * LEVELS  # as many levels of the second part make one of the first
MIDDLE = 128  # what stands for 0 where there are no signs
AT_ONCE = 2**17  # numbers
NOTHING = 1e-12  # beside a row's mean square, so that a row of zeros has a length


def times(graph: Graph, x: str, matrix: Tensor, within: float | None = None) -> str:
    """Rows [..., 1, in] with a matrix [out, in] → [..., 1, out].

    Args:
        graph: to add it to.
        x: the rows, float32.
        matrix: in any dtype.
        within: what no number of a row exceeds; a row that is not a number gives numbers all the same. None: each
            row's own length says so, and a row that is not a number stays so.
    """
    if within is not None:
        return _times(graph, x, matrix, within)
    width = matrix.shape[1]
    # a row of length √width has no number beyond it
    ones = graph.constant(torch.ones(width))
    x, shrunk = graph.node("SimplifiedLayerNormalization", [x, ones], 2, axis=-1, epsilon=NOTHING)
    return graph.op("Div", _times(graph, x, matrix, width**0.5), shrunk)


def _times(graph: Graph, x: str, matrix: Tensor, within: float) -> str:
    signed = _signed_sums_are_exact()
    level = graph.number(within / LEVELS)
    fine = graph.number(within / LEVELS / FINER)
    middle = graph.constant(torch.tensor(MIDDLE, dtype=torch.uint8))
    coarse = graph.op("QuantizeLinear", x, level, middle)
    left = graph.op("Sub", x, graph.op("DequantizeLinear", coarse, level, middle))
    both = graph.op("Concat", coarse, graph.op("QuantizeLinear", left, fine, middle), axis=-2)
    packed, scales = pack(matrix, signed=signed)
    zero = graph.constant(torch.tensor(0, dtype=torch.int8) if signed else torch.tensor(MIDDLE, dtype=torch.uint8))
    inputs = both, graph.constant(packed), level, graph.constant(scales), middle, zero
    made = graph.op("MatMulIntegerToFloat", *inputs, domain=CONTRIB)
    return graph.op("MatMul", graph.constant(torch.tensor([[1, 1 / FINER]])), made)


def pack(matrix: Tensor, *, signed: bool = True) -> tuple[Tensor, Tensor]:
    """A matrix [out, in] in 8 bits, [in, out], and its scales [out].

    Args:
        matrix: in any dtype.
        signed: around 0, or around MIDDLE.
    """
    outputs, inputs = matrix.shape
    packed = torch.empty(inputs, outputs, dtype=torch.int8 if signed else torch.uint8)
    scales = torch.empty(outputs)
    # a few rows at a time: what the C library gets back of larger tensors lies between those that stay
    step = max(1, AT_ONCE // inputs)
    for begin in range(0, outputs, step):
        rows = slice(begin, begin + step)
        whole = matrix[rows].float()
        scales[rows] = (whole.abs().amax(dim=1) / LEVELS).clamp(min=1e-12)
        whole = (whole / scales[rows, None]).round_()
        packed[:, rows] = (whole if signed else whole.add_(MIDDLE)).to(packed.dtype).T
    return packed, scales


@cache
def _signed_sums_are_exact() -> bool:
    """Whether this processor multiplies bytes with and without a sign exactly.

    Those without VNNI sum pairs of products in 16 bits, which two large ones leave. They have a slower way for bytes
    that both have no sign.
    """
    width, graph = 64, Graph()
    x = graph.input("x", torch.uint8, ["R", width])
    most = graph.constant(torch.full((width, width), LEVELS, dtype=torch.int8))
    one, zero = graph.number(1.0), graph.constant(torch.tensor(0, dtype=torch.uint8))
    signed_zero = graph.constant(torch.tensor(0, dtype=torch.int8))
    made = graph.op("MatMulIntegerToFloat", x, most, one, one, zero, signed_zero, domain=CONTRIB)
    graph.output("made", made, ["R", width])
    rows, sums = torch.full((4, width), 255, dtype=torch.uint8), torch.empty(4, width)
    graph.program(1).bind({"x": rows}, {"made": sums})()
    return bool((sums == 255 * LEVELS * width).all())
