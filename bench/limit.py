"""How fast a step can be at best: the bytes that it has to read, over the rate at which memory gives them.

A step with few rows does little arithmetic with each number that it reads, so memory is what it waits for. It reads
every matrix once, however many rows there are, and of each clip the keys and values of all positions so far:

    bytes = matrices + rows * (position + 1) * 2 * layers * dim * bytes of a number

In int8 a short prompt is folded (`musicgen_bento/native/folded.h`): instead of two matrices a layer each clip reads
what they became, for 16 tokens a quarter. Left out, being small: embeddings, norms, activations, and the keys and
values of a prompt that is not folded (16 tokens are as 16 positions of one row).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.rounds import POSITIONS
from bench.steps import PROMPT
from musicgen_bento.lm.delay_pattern import DelayPattern
from musicgen_bento.lm.kv_cache.factory import request_kv_bytes
from musicgen_bento.lm.kv_cache.paged import block_bytes, can_fuse_prompt, fused_prompt_bytes
from musicgen_bento.lm.weights import LMShape
from musicgen_bento.native.bindings import BLOCK_SIZE
from musicgen_bento.precision import FLOAT16_WEIGHTS, FLOAT32_NATIVE, INT8, ModelSize, Precision

DELAYS = DelayPattern((0, 1, 2, 3))


def released(dim: int, heads: int, layers: int) -> LMShape:
    """The shape of a released mono model."""
    return LMShape(dim, 4 * dim, heads, layers, 2048, DELAYS, 1500, "cross")


SHAPES = {"small": released(1024, 16, 24), "medium": released(1536, 24, 48), "large": released(2048, 32, 48)}


@dataclass(frozen=True)
class Moved:
    """Bytes that one step reads.

    Attributes:
        matrices: whatever the rows are.
        cache: keys and values of all rows, and their prompts where those are folded.
    """

    matrices: int
    cache: int

    @property
    def all(self) -> int:
        """Both."""
        return self.matrices + self.cache


def in_matrices(shape: LMShape, folded: bool = False) -> int:
    """Numbers that a step multiplies with.

    What makes the prompt's keys and values does so once a clip; and where the prompt is folded, so do a query's matrix
    and the one behind cross-attention.
    """
    layer = (4 if folded else 6) * shape.dim**2 + 2 * shape.dim * shape.hidden
    return shape.layers * layer + shape.codebooks * shape.codebook_size * shape.dim


def moved(shape: LMShape, precision: Precision, position: int, clips: int = 1) -> Moved:
    """What a step reads for guided clips (two rows each) of short prompts, all at one position."""
    folded = shape.text_conditioning == "cross" and can_fuse_prompt(precision, PROMPT)
    numbers = in_matrices(shape, folded)
    if precision.native_kernel:
        cache = 2 * (position + 1) * block_bytes(shape, precision) // BLOCK_SIZE
        cache += fused_prompt_bytes(shape, PROMPT) if folded else 0
    else:
        cache = request_kv_bytes(shape, precision, 2, position + 1, 0)
    return Moved(precision.model_bytes(ModelSize(numbers, numbers)), clips * cache)


def milliseconds(shape: LMShape, precision: Precision, position: int, clips: int, rate: float) -> float:
    """The shortest a step can take.

    Args:
        shape: of the model.
        precision: of the model.
        position: of every clip.
        clips: how many.
        rate: of the memory, bytes a second.
    """
    return 1000 * moved(shape, precision, position, clips).all / rate


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns are words and whose others are figures."""
    lines = [heads, [*["---"] * words, *["---:"] * (len(heads) - words)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def table() -> str:
    """Bytes of a step of one clip on a CPU."""
    rows = []
    for size, shape in SHAPES.items():
        for precision in (FLOAT32_NATIVE, FLOAT16_WEIGHTS, INT8):
            found = [moved(shape, precision, position) for position in POSITIONS]
            figures = [found[0].matrices, *(each.all for each in found)]
            rows.append([size, precision.name, *(f"{figure / 1e6:,.0f}" for figure in figures)])
    return markdown(["model", "precision", "matrices, MB", *(f"position {at}" for at in POSITIONS)], rows, 2)
