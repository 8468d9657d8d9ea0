"""Products with packed float16 matrices by FBGEMM, which torch includes for x86 processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_linear_fp16: Any = torch.ops.quantized.linear_dynamic_fp16.default


def available() -> bool:
    """Whether torch supports FBGEMM on this processor."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def pack_float16(weight: Tensor) -> Any:
    """Pack a matrix [out, in] in float16."""
    with _fbgemm_engine():
        return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)


def linear_float16(x: Tensor, packed: Any) -> Tensor:
    """Multiply float32 rows [R, in] with a matrix of `pack_float16` → [R, out], with sums in float32."""
    out: Tensor = _linear_fp16(x, packed)
    return out


@contextmanager
def _fbgemm_engine() -> Iterator[None]:
    """Select FBGEMM as torch's engine for quantized matrices, for the duration of the block."""
    previous = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = previous
