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
class ModelSize:
    """How large a language model is.

    Attributes:
        numbers: all of them.
        in_matrices: those in matrices.
    """

    num_params: int
    num_matmul_params: int


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
    weight_dtype: torch.dtype
    compute_dtype: torch.dtype
    kv_dtype: torch.dtype
    kv_bytes_per_element: float
    scale_bytes_per_weight: float = 0
    native_kernel: bool = False

    def model_bytes(self, size: ModelSize) -> int:
        """What a language model of this size takes."""
        rest = size.num_params - size.num_matmul_params
        return (
            int(size.num_matmul_params * (self.weight_dtype.itemsize + self.scale_bytes_per_weight))
            + rest * self.compute_dtype.itemsize
        )

    def estimate_model_bytes(self, numbers: int, layers: int, dim: int) -> int:
        """What one of so many numbers takes, by the shape of all released ones."""
        matrices = 16 * layers * dim**2 + 4 * 2048 * dim
        return self.model_bytes(ModelSize(numbers, min(matrices, numbers)))


FLOAT32 = Precision("float32", torch.float32, torch.float32, torch.float32, 4)
FLOAT32_NATIVE = replace(FLOAT32, native_kernel=True)
BFLOAT16 = Precision("bfloat16", torch.bfloat16, torch.bfloat16, torch.bfloat16, 2)
FLOAT16 = Precision("float16", torch.float16, torch.float16, torch.float16, 2)
# On a CPU float16 is a way to keep numbers, not to compute: products are summed in float32. Of the cache in 8 bits 64
# numbers have scale and minimum, and the last positions are there in float32 too: 1.2 bytes in a window of 30 s.
FLOAT16_WEIGHTS = Precision("float16", torch.float16, torch.float32, torch.uint8, 1.25)
# A matrix's row has a scale; in the cache the 64 numbers of a head.
INT8 = Precision("int8", torch.int8, torch.float32, torch.int8, 1.0625, scale_bytes_per_weight=0.01, native_kernel=True)


def supported_precisions(device: torch.device) -> dict[str, Precision]:
    """What there is on a device, by name."""
    if device.type != "cpu":
        return {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
    found = {"float32": FLOAT32_NATIVE if bindings.available() else FLOAT32, "bfloat16": BFLOAT16}
    if bindings.available():
        found["int8"] = INT8
    if fbgemm.available():
        found["float16"] = FLOAT16_WEIGHTS
    return found


def default_precision(device: torch.device) -> Precision:
    """What `auto` is there, of those that `musicgen-bento verify` found as good as float32 (docs/performance.md)."""
    if device.type != "cpu":
        return FLOAT16
    return supported_precisions(device).get("int8", FLOAT32)
