"""What a step will take on an H200, predicted from what it does: bytes, operations, and kernels one after the other.

    time = the longer of bytes / memory's rate and operations / arithmetic's rate, and kernels * time between two

Bytes and operations are counted from the shapes, kernels from the operators of `graphs.py` (a test counts them). The
rates are the data sheet's. The time from one kernel of a graph to the next is an assumption, and the weakest part.
"""

from __future__ import annotations

from bench.limit import SHAPES, in_matrices, markdown, moved
from bench.rounds import POSITIONS
from musicgen_bento.lm.cuda_graph_decoder import LENGTH
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.precision import FLOAT16

BYTES, OPERATIONS = 4.8e12, 989e12  # a second: HBM3e, and float16 without sparsity
KERNEL = 2e-6  # seconds, assumed
A_LAYER, BESIDE = 28, 92  # operators, each a kernel at least
CLIPS = (1, 16, 64)


def operations(shape: LMShape, position: int, clips: int) -> int:
    """Multiplications and additions of a step: matrices, then scores and sums over the past."""
    past = 2 * 2 * shape.layers * shape.dim * (position + 1)
    return 2 * clips * (2 * in_matrices(shape) + past)


def kernels(shape: LMShape) -> int:
    """Of a step, sampling included."""
    return A_LAYER * shape.layers + BESIDE


def milliseconds(shape: LMShape, position: int, clips: int) -> float:
    """Of a step in float16."""
    read = -(-(position + 1) // LENGTH) * LENGTH - 1  # a graph reads whole lengths
    work = max(moved(shape, FLOAT16, read, clips).all / BYTES, operations(shape, read, clips) / OPERATIONS)
    return 1000 * (work + kernels(shape) * KERNEL)


def table() -> str:
    """In Markdown."""
    heads = ["model", "clips", "GB", "GFLOP", "kernels", *(f"ms at {at}" for at in POSITIONS), "audio s/s"]
    rows = []
    for size, shape in SHAPES.items():
        for clips in CLIPS:
            last, ms = POSITIONS[-1], [milliseconds(shape, at, clips) for at in POSITIONS]
            counted = moved(shape, FLOAT16, last, clips).all / 1e9, operations(shape, last, clips) / 1e9
            figures = [f"{counted[0]:.2f}", f"{counted[1]:,.1f}", str(kernels(shape)), *(f"{each:.2f}" for each in ms)]
            rows.append([size, str(clips), *figures, f"{clips * 20 / ms[1]:.0f}"])
    return markdown(heads, rows)
