"""FBGEMM, PyTorch's products of packed matrices for x86 processors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_HALF: Any = torch.ops.quantized.linear_dynamic_fp16.default


def available() -> bool:
    """Whether this processor has it."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def pack_float16(weight: Tensor) -> Any:
    """A matrix [out, in], to float16."""
    with _engine():
        return torch.ops.quantized.linear_prepack_fp16(weight.float(), None)


def linear_float16(x: Tensor, packed: Any) -> Tensor:
    """Rows [R, in] of float32 with a matrix that `pack_half` made → [R, out], summed in float32."""
    out: Tensor = _HALF(x, packed)
    return out


@contextmanager
def _engine() -> Iterator[None]:
    """While matrices are packed: by FBGEMM, for the processor at hand."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
