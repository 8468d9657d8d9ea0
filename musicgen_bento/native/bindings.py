"""The project's own kernel, in C (`native/`): on a CPU the language model's forward pass, all layers in one call, and
what the codec is made of.

`make setup`, or whatever builds the package, compiles it with zig's C compiler, which comes as a Python package, for
each kind of processor below. Nothing is compiled later.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Callable
from ctypes import POINTER, Structure, c_float, c_int64, c_uint64, c_void_p
from functools import cache
from itertools import count, takewhile
from pathlib import Path
from typing import Any

_log = logging.getLogger("bentoml.musicgen")  # below BentoML's, which has a handler

FOLDER = Path(__file__).parent
LANES, DEPTH = 16, 64
"""Outputs of a matrix are a multiple of the first; inputs of one in bytes, of the second."""

MAX_HEAD_DIM = 128
MAX_FUSED_TOKENS = 24
"""Tokens of a prompt that is folded (`native/folded.h`)."""

BLOCK_SIZE = 64
"""Positions of a block of keys and values."""

# By machine, the best first: what /proc/cpuinfo has to name among the processor's features.
VARIANTS = {
    "x86_64": (
        ("x86_64-avx512", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}),
        ("x86_64-avx2", {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"}),
    ),
    "aarch64": (("aarch64-dotprod", {"asimddp"}),),
}


class Matrix(Structure):
    """See `product.h`."""

    _fields_ = (("packed", c_void_p), ("scales", c_void_p), ("outputs", c_int64), ("inputs", c_int64))


class Norm(Structure):
    """See `product.h`."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Layer(Structure):
    """See `decoder.c`. What it has of cross-attention is zeros where there is none."""

    _fields_ = (
        ("norm1", Norm),
        ("query_key_value", Matrix),
        ("out", Matrix),
        ("norm_cross", Norm),
        ("query", Matrix),
        ("key_value", Matrix),
        ("out_cross", Matrix),
        ("norm2", Norm),
        ("linear1", Matrix),
        ("linear2", Matrix),
    )


class Model(Structure):
    """See `decoder.c`."""

    _fields_ = (
        ("dim", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("layers", c_int64),
        ("layer", POINTER(Layer)),
        ("out_norm", Norm),
        ("logits", Matrix),
        ("codebooks", c_int64),
        ("card", c_int64),
        ("embeddings", c_void_p),
        ("places", c_void_p),
    )


class Clip(Structure):
    """See `decoder.c`."""

    _fields_ = (
        ("own", c_void_p * 2),
        ("heard", c_void_p),
        ("folded", c_void_p),
        ("heard_length", c_int64),
        ("position", c_int64),
        ("seed", c_uint64),
        ("key", c_uint64),
        ("top_k", c_int64),
        ("temperature", c_float),
        ("top_p", c_float),
        ("cfg_coef", c_float),
    )


class Row(Structure):
    """See `decoder.c`."""

    _fields_ = (
        ("own", c_void_p),
        ("heard", c_void_p),
        ("folded", c_void_p),
        ("position", c_int64),
        ("heard_length", c_int64),
    )


class Convolution(Structure):
    """See `codec.c`."""

    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("taps", c_int64),
        ("dilation", c_int64),
    )


class Recurrence(Structure):
    """See `codec.c`."""

    _fields_ = (("packed", c_void_p), ("scales", c_void_p), ("input", Convolution))
    kept: Any  # what it points to


_CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "decoder_open": (c_void_p, (POINTER(Model), c_int64, c_void_p)),
    "decoder_close": (None, (c_void_p,)),
    "decoder_block": (c_int64, (c_void_p,)),
    "decoder_forward": (None, (c_void_p, c_void_p, c_int64, c_void_p, c_void_p)),
    "decoder_draw": (None, (c_void_p, c_void_p, c_int64, c_void_p, c_void_p)),
    "decoder_prompt": (None, (c_void_p, c_void_p, c_int64, c_void_p)),
    "decoder_folded": (c_int64, (c_void_p, c_int64)),
    "decoder_fold": (c_int64, (c_void_p, c_void_p, c_int64, c_void_p)),
    "decoder_spent": (None, (c_void_p, c_void_p)),
    "team_new": (c_void_p, (c_int64,)),
    "team_free": (None, (c_void_p,)),
    "codec_convolve": (None, (c_void_p, POINTER(Convolution), c_void_p, c_int64, c_int64, c_void_p)),
    "codec_recur": (None, (c_void_p, POINTER(Recurrence), c_void_p, c_int64, c_int64, *[c_void_p] * 4)),
    "codec_elu": (None, (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "codec_overlap": (None, (c_void_p, c_void_p, c_void_p, *[c_int64] * 4, c_void_p, c_void_p)),
    "codec_pack": (None, (c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "codec_layout": (POINTER(c_int64), ()),
    "kernel_read": (c_int64, (c_void_p, c_void_p, c_int64)),
    "decoder_layout": (POINTER(c_int64), ()),
    "matrix_pack": (None, (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p)),
}


def select_variant(processor: set[str], variants: tuple[tuple[str, set[str]], ...]) -> str | None:
    """The first variant that a processor of these features has, by name."""
    return next((name for name, needs in variants if needs <= processor), None)


@cache
def library() -> Any:
    """The kernel for this processor; None where there is none, or none that can be used."""
    if sys.platform != "linux":
        return None
    try:
        name = select_variant(_features(), VARIANTS.get(platform.machine(), ()))
        return None if name is None else load_library(FOLDER / f"{name}.so")
    except (OSError, AttributeError) as error:
        _log.warning(
            "There is no kernel, so that steps are slower (%s). `make setup` compiles it.", type(error).__name__
        )
        return None


def load_library(path: Path) -> Any:
    """A kernel, with its functions' types.

    Raises:
        OSError: it cannot be loaded, or was compiled from other sources than these.
        AttributeError: it lacks a function.
    """
    found = ctypes.CDLL(str(path))
    for name, (result, arguments) in _CALLS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    for function, expected in _LAYOUTS.items():
        numbers = getattr(found, function)()
        if list(takewhile(bool, map(numbers.__getitem__, count()))) != expected:
            raise OSError(f"{path.name} was compiled from other sources")
    return found


_LAYOUTS: dict[str, list[int]] = {
    "decoder_layout": [*map(ctypes.sizeof, (Matrix, Norm, Layer, Model, Clip, Row)), MAX_FUSED_TOKENS],
    "codec_layout": [*map(ctypes.sizeof, (Convolution, Recurrence))],
}


class ThreadPool:
    """Threads that run the kernel's calls, one call at a time.

    Args:
        size: how many there are, the calling one included.

    Raises:
        MemoryError: there is none for it.
    """

    def __init__(self, size: int) -> None:
        self._library = library()
        self.handle = self._library.team_new(size)
        if self.handle is None:
            raise MemoryError("threads")

        self._process = os.getpid()

    def __del__(self, process: Callable[[], int] = os.getpid) -> None:  # at the interpreter's end there is no `os` here
        # in a fork of the process there are no threads to end
        if getattr(self, "handle", None) is not None and self._process == process():
            self._library.team_free(self.handle)


def create_thread_pool(size: int) -> ThreadPool | None:
    """So many threads; None where there is no kernel for them."""
    return ThreadPool(size) if available() else None


def available() -> bool:
    """Whether there is a kernel for this processor."""
    return library() is not None


def _features() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
