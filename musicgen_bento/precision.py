"""What the language model's numbers are held in, and what that takes.

The matrices, nearly all of a model, are what costs memory and time: each step reads all of
them once. What attention remembers of each clip has a dtype of its own, and so has everything else
(embeddings, norms, activations).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from musicgen_bento.native import bindings, fbgemm


@dataclass(frozen=True, slots=True)
class Size:
    """How large a language model is.

    Attributes:
        numbers: all of them.
        in_matrices: those in matrices.
    """

    numbers: int
    in_matrices: int


@dataclass(frozen=True, slots=True)
class Precision:
    """One of them.

    Attributes:
        name: as `MUSICGEN_PRECISION` has it.
        matrices: dtype of the matrices' numbers.
        rest: dtype of everything else, of sums and of results.
        cache: dtype of the keys and values that attention remembers.
        cached: bytes that one of them takes, scales included, at most.
        scales: bytes that each number of a matrix takes beside itself.
        packed: whether the project's kernel runs it, on a CPU; else torch does.
    """

    name: str
    matrices: torch.dtype
    rest: torch.dtype
    cache: torch.dtype
    cached: float
    scales: float = 0
    packed: bool = False

    def bytes(self, size: Size) -> int:
        """What a language model of this size takes."""
        rest = size.numbers - size.in_matrices
        return int(size.in_matrices * (self.matrices.itemsize + self.scales)) + rest * self.rest.itemsize

    def estimate(self, numbers: int, layers: int, dim: int) -> int:
        """What one of so many numbers takes, by the shape of all released ones."""
        matrices = 16 * layers * dim**2 + 4 * 2048 * dim
        return self.bytes(Size(numbers, min(matrices, numbers)))


FLOAT32 = Precision("float32", torch.float32, torch.float32, torch.float32, 4)
FLOAT32_PACKED = replace(FLOAT32, packed=True)
BFLOAT16 = Precision("bfloat16", torch.bfloat16, torch.bfloat16, torch.bfloat16, 2)
FLOAT16 = Precision("float16", torch.float16, torch.float16, torch.float16, 2)
# On a CPU float16 is a way to keep numbers, not to compute: products are summed in float32. Of the cache in 8 bits 64
# numbers have scale and minimum, and the last positions are there in float32 too: 1.2 bytes in a window of 30 s.
FLOAT16_KEPT = Precision("float16", torch.float16, torch.float32, torch.uint8, 1.25)
# A matrix's row has a scale; in the cache the 64 numbers of a head.
INT8 = Precision("int8", torch.int8, torch.float32, torch.int8, 1.0625, scales=0.01, packed=True)


def on(device: torch.device) -> dict[str, Precision]:
    """What there is on a device, by name."""
    if device.type != "cpu":
        return {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
    found = {"float32": FLOAT32_PACKED if bindings.available() else FLOAT32, "bfloat16": BFLOAT16}
    if bindings.available():
        found["int8"] = INT8
    if fbgemm.available():
        found["float16"] = FLOAT16_KEPT
    return found


def best(device: torch.device) -> Precision:
    """What `auto` is there, of those that `musicgen-bento verify` found as good as float32 (docs/performance.md)."""
    if device.type != "cpu":
        return FLOAT16
    return on(device).get("int8", FLOAT32)
