"""What the language model's numbers are held in, and what that takes.

Five ways on a CPU or a GPU. The matrices, nearly all of a model, are what costs memory and time: each step reads all of
them once. Everything else (embeddings, norms, keys and values, activations) has a dtype of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Size:
    """How large a language model is.

    Attributes:
        numbers: all of them.
        in_matrices: those in matrices.
        outputs: of all matrices together.
    """

    numbers: int
    in_matrices: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Precision:
    """One of them.

    Attributes:
        name: as `MUSICGEN_PRECISION` has it.
        matrices: dtype of the matrices' numbers.
        rest: dtype of everything else, of sums and of results.
        per_output: bytes that each output of a matrix takes beside its numbers.
    """

    name: str
    matrices: torch.dtype
    rest: torch.dtype
    per_output: int = 0

    def bytes(self, size: Size) -> int:
        """What a language model of this size takes."""
        rest = size.numbers - size.in_matrices
        return size.in_matrices * self.matrices.itemsize + rest * self.rest.itemsize + size.outputs * self.per_output


FLOAT32 = Precision("float32", torch.float32, torch.float32)
BFLOAT16 = Precision("bfloat16", torch.bfloat16, torch.bfloat16)
FLOAT16 = Precision("float16", torch.float16, torch.float16)
# On a CPU float16 is a way to keep numbers, not to compute: products are summed in float32.
FLOAT16_KEPT = Precision("float16", torch.float16, torch.float32)
INT8 = Precision("int8", torch.int8, torch.float32, per_output=12)  # scale, zero point, sum of the weights


def named(name: str, device: torch.device) -> Precision:
    """The precision of a name on a device.

    Raises:
        KeyError: there is none.
    """
    kept = {"float16": FLOAT16_KEPT, "int8": INT8} if device.type == "cpu" else {"float16": FLOAT16}
    return ({"float32": FLOAT32, "bfloat16": BFLOAT16} | kept)[name]
