"""Number formats of the language model, and the memory that a model takes in each.

Nearly all parameters of a model are in matrices. Each step reads all of them once, so their dtype determines memory
and speed. The KV cache has a dtype of its own, and so has everything else: embeddings, norms and activations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from musicgen_bento.native import bindings, fbgemm

# Every released MusicGen has this architecture. A layer has 16 matrices of dim x dim: 4 of self-attention, 4 of
# cross-attention, 8 of the feed-forward network (two of dim x 4 dim). The output has one matrix per codebook.
SQUARE_MATRICES_PER_LAYER = 16
CODEBOOKS = 4
CODEBOOK_ENTRIES = 2048


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The number of parameters of a language model.

    Attributes:
        num_params: all parameters.
        num_matmul_params: the parameters in matrices that each step multiplies.
    """

    num_params: int
    num_matmul_params: int


@dataclass(frozen=True, slots=True)
class Precision:
    """The number formats of one value of `MUSICGEN_PRECISION`.

    Attributes:
        name: the value of `MUSICGEN_PRECISION`.
        weight_dtype: dtype of the matrices.
        compute_dtype: dtype of all other parameters, of sums and of results.
        kv_dtype: dtype of the KV cache.
        kv_bytes_per_element: bytes of one element of the KV cache at most, scales included.
        scale_bytes_per_weight: bytes of scales for each element of a matrix.
        native_kernel: whether the C kernel runs the model, on a CPU; otherwise torch does.
    """

    name: str
    weight_dtype: torch.dtype
    compute_dtype: torch.dtype
    kv_dtype: torch.dtype
    kv_bytes_per_element: float
    scale_bytes_per_weight: float = 0
    native_kernel: bool = False

    def model_bytes(self, size: ModelSize) -> int:
        """Return the memory of a language model of this size."""
        matrix_bytes = int(size.num_matmul_params * (self.weight_dtype.itemsize + self.scale_bytes_per_weight))
        return matrix_bytes + (size.num_params - size.num_matmul_params) * self.compute_dtype.itemsize

    def estimate_model_bytes(self, num_params: int, layers: int, dim: int) -> int:
        """Estimate the memory of a language model, assuming the architecture of the released models."""
        num_matmul_params = SQUARE_MATRICES_PER_LAYER * layers * dim**2 + CODEBOOKS * CODEBOOK_ENTRIES * dim
        return self.model_bytes(ModelSize(num_params, min(num_matmul_params, num_params)))


FLOAT32 = Precision("float32", torch.float32, torch.float32, torch.float32, 4)
FLOAT32_NATIVE = replace(FLOAT32, native_kernel=True)
BFLOAT16 = Precision("bfloat16", torch.bfloat16, torch.bfloat16, torch.bfloat16, 2)
FLOAT16 = Precision("float16", torch.float16, torch.float16, torch.float16, 2)
# On a CPU only the weights are float16; products are summed in float32. The KV cache has 8 bits per element, and a
# scale and a minimum per 64 elements. Its last positions are also in float32: 1.2 bytes per element in 30 s.
FLOAT16_WEIGHTS = Precision("float16", torch.float16, torch.float32, torch.uint8, 1.25)
# Each row of a matrix has a scale; the KV cache has one per head and position, which is 64 elements.
INT8 = Precision("int8", torch.int8, torch.float32, torch.int8, 1.0625, scale_bytes_per_weight=0.01, native_kernel=True)


def supported_precisions(device: torch.device) -> dict[str, Precision]:
    """Return the precisions that a device supports, by name."""
    if device.type != "cpu":
        return {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
    supported = {"float32": FLOAT32_NATIVE if bindings.available() else FLOAT32, "bfloat16": BFLOAT16}
    if bindings.available():
        supported["int8"] = INT8
    if fbgemm.available():
        supported["float16"] = FLOAT16_WEIGHTS
    return supported


def default_precision(device: torch.device) -> Precision:
    """Return the precision that `auto` means: the fastest that `musicgen-bento verify` finds as good as float32.

    docs/performance.md has the measurements.
    """
    if device.type != "cpu":
        return FLOAT16
    return supported_precisions(device).get("int8", FLOAT32)
