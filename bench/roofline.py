"""Memory roofline: the least time of a step, from the bytes that it reads and the memory bandwidth.

A step with few rows does little arithmetic for each weight that it reads, so memory bandwidth bounds it. A step reads
every matrix once, whatever the batch size, and for each clip the keys and values of all positions so far:

    bytes = matrices + rows * (position + 1) * 2 * layers * dim * bytes of an element

In int8 a short prompt is fused (`musicgen_bento/native/prompt_fusion.h`): each clip reads its fused matrices instead
of two matrices of a layer, a quarter of the bytes for 16 tokens. Embeddings, norms, activations and the keys and values
of a prompt that is not fused are small and left out; 16 tokens equal 16 positions of one row.

No GPU has run this yet. For an H200 the time of a step is estimated:

    time = max(bytes / memory bandwidth, operations / arithmetic rate) + kernels * launch interval

Bytes and operations are counted from the shapes, kernels from the operators of `lm/cuda_graph_decoder.py` (a test
counts them), the rates are the data sheet's. The launch interval within a graph is an assumption, the weakest part.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.measurements import POSITIONS
from bench.steps import PROMPT_TOKENS
from bench.tables import markdown_table
from musicgen_bento.lm.delay_pattern import DelayPattern
from musicgen_bento.lm.kv_cache.batch import LENGTH_STEP
from musicgen_bento.lm.kv_cache.factory import request_kv_bytes
from musicgen_bento.lm.kv_cache.paged import block_bytes, can_fuse_prompt, fused_prompt_bytes
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.native.bindings import BLOCK_SIZE
from musicgen_bento.precision import FLOAT16, FLOAT16_WEIGHTS, FLOAT32_NATIVE, INT8, ModelSize, Precision

H200_BYTES_PER_SECOND = 4.8e12  # HBM3e
H200_OPERATIONS_PER_SECOND = 989e12  # float16 without sparsity
LAUNCH_SECONDS = 2e-6  # from one kernel of a graph to the next; assumed
KERNELS_PER_LAYER, OTHER_KERNELS = 28, 92  # operators; each is at least one kernel
H200_BATCHES = (1, 16, 64)
DELAYS = DelayPattern((0, 1, 2, 3))


def mono_shape(dim: int, heads: int, layers: int) -> LMShape:
    """Return the shape of a mono model as Meta published it."""
    return LMShape(dim, 4 * dim, heads, layers, 2048, DELAYS, 1500, "cross")


SHAPES = {"small": mono_shape(1024, 16, 24), "medium": mono_shape(1536, 24, 48), "large": mono_shape(2048, 32, 48)}


@dataclass(frozen=True)
class StepBytes:
    """Bytes that one step reads.

    Attributes:
        matrices: weights, independent of the batch size.
        cache: keys and values of all rows, and fused prompts.
    """

    matrices: int
    cache: int

    @property
    def total(self) -> int:
        """Matrices and cache together."""
        return self.matrices + self.cache


def num_step_weights(shape: LMShape, fused: bool = False) -> int:
    """Return the number of weights that a step multiplies with.

    The matrices that project the prompt to keys and values run once a clip and are left out. With a fused prompt, the
    query and output matrices of cross-attention run once a clip too.
    """
    layer = (4 if fused else 6) * shape.dim**2 + 2 * shape.dim * shape.hidden
    return shape.layers * layer + shape.codebooks * shape.codebook_size * shape.dim


def step_bytes(shape: LMShape, precision: Precision, position: int, clips: int = 1) -> StepBytes:
    """Count the bytes that a step reads for guided clips (two rows each) with short prompts, all at one position."""
    fused = shape.text_conditioning == "cross" and can_fuse_prompt(precision, PROMPT_TOKENS)
    weights = num_step_weights(shape, fused)
    if precision.native_kernel:
        cache = 2 * (position + 1) * block_bytes(shape, precision) // BLOCK_SIZE
        cache += fused_prompt_bytes(shape, PROMPT_TOKENS) if fused else 0
    else:
        cache = request_kv_bytes(shape, precision, 2, position + 1, 0)
    return StepBytes(precision.model_bytes(ModelSize(weights, weights)), clips * cache)


def roofline_ms(shape: LMShape, precision: Precision, position: int, clips: int, bytes_per_second: float) -> float:
    """Return the least milliseconds of a step.

    Args:
        shape: sizes of the model.
        precision: precision of the model.
        position: position of every clip.
        clips: batch size.
        bytes_per_second: memory bandwidth.
    """
    return 1000 * step_bytes(shape, precision, position, clips).total / bytes_per_second


def cpu_table() -> str:
    """Return the megabytes that a step of one clip reads on a CPU, as a Markdown table."""
    rows = []
    for size, shape in SHAPES.items():
        for precision in (FLOAT32_NATIVE, FLOAT16_WEIGHTS, INT8):
            counts = [step_bytes(shape, precision, position) for position in POSITIONS]
            figures = [counts[0].matrices, *(count.total for count in counts)]
            rows.append([size, precision.name, *(f"{figure / 1e6:,.0f}" for figure in figures)])
    headings = ["model", "precision", "matrices, MB", *(f"position {position}" for position in POSITIONS)]
    return markdown_table(headings, rows, text_columns=2)


def num_operations(shape: LMShape, position: int, clips: int) -> int:
    """Count multiplications and additions of a step: matrices, then attention scores and weighted sums."""
    attention = 2 * 2 * shape.layers * shape.dim * (position + 1)
    return 2 * clips * (2 * num_step_weights(shape) + attention)


def num_kernels(shape: LMShape) -> int:
    """Return the number of GPU kernels of a step, sampling included."""
    return KERNELS_PER_LAYER * shape.layers + OTHER_KERNELS


def h200_ms(shape: LMShape, position: int, clips: int) -> float:
    """Estimate the milliseconds of a step in float16 on an H200."""
    last_read = -(-(position + 1) // LENGTH_STEP) * LENGTH_STEP - 1  # a graph reads the cache in whole lengths
    reading = step_bytes(shape, FLOAT16, last_read, clips).total / H200_BYTES_PER_SECOND
    computing = num_operations(shape, last_read, clips) / H200_OPERATIONS_PER_SECOND
    return 1000 * (max(reading, computing) + num_kernels(shape) * LAUNCH_SECONDS)


def h200_table() -> str:
    """Return the estimates for an H200 as a Markdown table."""
    last = POSITIONS[-1]
    rows = []
    for size, shape in SHAPES.items():
        for clips in H200_BATCHES:
            ms = [h200_ms(shape, position, clips) for position in POSITIONS]
            gigabytes = step_bytes(shape, FLOAT16, last, clips).total / 1e9
            billion_operations = num_operations(shape, last, clips) / 1e9
            counts = [f"{gigabytes:.2f}", f"{billion_operations:,.1f}", str(num_kernels(shape))]
            audio_seconds_per_second = f"{clips * 20 / ms[1]:.0f}"
            rows.append([size, str(clips), *counts, *(f"{value:.2f}" for value in ms), audio_seconds_per_second])
    times = [f"ms at {position}" for position in POSITIONS]
    return markdown_table(["model", "clips", "GB", "GFLOP", "kernels", *times, "audio s/s"], rows)
