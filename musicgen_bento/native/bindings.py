"""ctypes bindings of the C kernel: a decoder step of the language model (decoder.c), layers of the codec (codec.c).

The package build (`setup.py`, `make setup`) compiles the kernel for each processor variant below. The compiler is zig's
C compiler, which comes as a Python package. Nothing is compiled later.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from ctypes import POINTER, Structure, c_float, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

from musicgen_bento.log import logger

FOLDER = Path(__file__).parent

LANES = 16
"""The outputs of a packed matrix are a multiple of this."""

K_BLOCK = 64
"""The inputs of a packed int8 matrix are a multiple of this."""

MAX_HEAD_DIM = 128
MAX_FUSED_TOKENS = 24
"""Maximum number of tokens of a fused prompt (prompt_fusion.h)."""

BLOCK_SIZE = 64
"""Positions of a KV cache block."""

# By machine, the fastest variant first: its name, and the features that /proc/cpuinfo must list.
VARIANTS = {
    "x86_64": (
        ("x86_64-avx512", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"}),
        ("x86_64-avx2", {"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"}),
    ),
    "aarch64": (("aarch64-dotprod", {"asimddp"}),),
}


class Matrix(Structure):
    """A packed weight matrix (`Matrix` in gemm.h).

    packed: int8 [outputs / 16, inputs / 4, 16, 4], or float32 [outputs / 16, inputs, 16]; scales: float32 [outputs], or
    None for a float32 matrix.
    """

    _fields_ = (("packed", c_void_p), ("scales", c_void_p), ("outputs", c_int64), ("inputs", c_int64))


class Norm(Structure):
    """A layer norm (`Norm` in gemm.h). weight, bias: float32 [width] each."""

    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class Layer(Structure):
    """The weights of a transformer layer (`Layer` in decoder.c).

    The fields of cross-attention (norm_cross to out_cross) are zeros in a model without it.
    """

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
    """A language model (`Model` in decoder.c).

    layers: [num_layers]; embeddings: float32 [codebooks, codebook_size + 1, dim]; pos_embeddings: float32
    [positions, dim].
    """

    _fields_ = (
        ("dim", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("num_layers", c_int64),
        ("layers", POINTER(Layer)),
        ("out_norm", Norm),
        ("logits", Matrix),
        ("codebooks", c_int64),
        ("codebook_size", c_int64),
        ("embeddings", c_void_p),
        ("pos_embeddings", c_void_p),
    )


class SequenceStep(Structure):
    """One step of a sequence, with its sampling parameters (`SequenceStep` in decoder.c).

    self_kv: block tables of the conditional and of the unconditional row, int64 [blocks] each, or None; cross_kv: block
    table of the prompt, int64 [blocks], or None; fused_prompt: the bytes of the fused prompt, or None.
    """

    _fields_ = (
        ("self_kv", c_void_p * 2),
        ("cross_kv", c_void_p),
        ("fused_prompt", c_void_p),
        ("prompt_tokens", c_int64),
        ("position", c_int64),
        ("seed", c_uint64),
        ("noise_step", c_uint64),
        ("top_k", c_int64),
        ("temperature", c_float),
        ("top_p", c_float),
        ("cfg_coef", c_float),
    )


class BatchRow(Structure):
    """One row of a batch, without sampling (`BatchRow` in decoder.c).

    self_kv, cross_kv: block tables of the row and of its prompt, int64 [blocks] each; fused_prompt: the bytes of the
    fused prompt. cross_kv and fused_prompt are None in an unconditional row.
    """

    _fields_ = (
        ("self_kv", c_void_p),
        ("cross_kv", c_void_p),
        ("fused_prompt", c_void_p),
        ("position", c_int64),
        ("prompt_tokens", c_int64),
    )


class PackedConv1d(Structure):
    """A packed convolution (`PackedConv1d` in codec.c).

    packed: float32 [outputs / 16, taps * inputs, 16]; bias: float32 [outputs, rounded up to 16].
    """

    _fields_ = (
        ("packed", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("taps", c_int64),
        ("dilation", c_int64),
    )


class PackedLstm(Structure):
    """A packed LSTM layer (`PackedLstm` in codec.c).

    packed: int16 [units / 16, units, 4, 16], the recurrent weights; scales: float32 [units / 16, 4, 16], their scales;
    input: the input weights, a convolution of one tap with 4 * units outputs.
    """

    _fields_ = (("packed", c_void_p), ("scales", c_void_p), ("input", PackedConv1d))


# Result and argument types; the C sources document the arguments.
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "decoder_open": (c_void_p, (POINTER(Model), c_int64, c_void_p)),
    "decoder_close": (None, (c_void_p,)),
    "decoder_forward": (None, (c_void_p, c_void_p, c_int64, c_void_p, c_void_p)),
    "decoder_step": (None, (c_void_p, c_void_p, c_int64, c_void_p, c_void_p)),
    "decoder_prefill_cross_kv": (None, (c_void_p, c_void_p, c_int64, c_void_p)),
    "decoder_fused_prompt_bytes": (c_int64, (c_void_p, c_int64)),
    "decoder_fuse_prompt": (c_int64, (c_void_p, c_void_p, c_int64, c_void_p)),
    "decoder_phase_times": (None, (c_void_p, c_void_p)),
    "decoder_layout": (POINTER(c_int64), ()),
    "pack_matrix": (None, (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p)),
    "bench_read_bandwidth": (c_int64, (c_void_p, c_void_p, c_int64)),
    "thread_pool_new": (c_void_p, (c_int64,)),
    "thread_pool_free": (None, (c_void_p,)),
    "codec_conv1d": (None, (c_void_p, POINTER(PackedConv1d), c_void_p, c_int64, c_int64, c_void_p)),
    "codec_lstm": (None, (c_void_p, POINTER(PackedLstm), c_void_p, c_int64, c_int64, *[c_void_p] * 4)),
    "codec_elu": (None, (c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "codec_overlap_add": (None, (c_void_p, c_void_p, c_void_p, *[c_int64] * 4, c_void_p, c_void_p)),
    "codec_pack_conv1d": (None, (c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "codec_layout": (POINTER(c_int64), ()),
}

# The result that each layout function of the kernel must return. Other versions of the sources have other sizes.
_LAYOUTS: dict[str, list[int]] = {
    "decoder_layout": [
        *(ctypes.sizeof(structure) for structure in (Matrix, Norm, Layer, Model, SequenceStep, BatchRow)),
        MAX_FUSED_TOKENS,
    ],
    "codec_layout": [ctypes.sizeof(PackedConv1d), ctypes.sizeof(PackedLstm)],
}


def round_up(number: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `number`."""
    return -(-number // step) * step


def select_variant(features: set[str], variants: tuple[tuple[str, set[str]], ...]) -> str | None:
    """Select the first variant whose required features a processor has; return its name, or None."""
    return next((name for name, required in variants if required <= features), None)


@cache
def library() -> Any:
    """The kernel for this processor, loaded; None if there is none or it cannot be loaded."""
    if sys.platform != "linux":
        return None
    try:
        name = select_variant(_processor_features(), VARIANTS.get(platform.machine(), ()))
        return None if name is None else load_library(FOLDER / f"{name}.so")
    except (OSError, AttributeError) as error:
        logger.warning(
            "The C kernel cannot be loaded (%s), so steps are slower. Run `make setup` to compile it.",
            type(error).__name__,
        )
        return None


def load_library(path: Path) -> Any:
    """Load a kernel and declare the types of its functions.

    Raises:
        OSError: the file cannot be loaded, or was compiled from other versions of the sources.
        AttributeError: the file lacks a function.
    """
    kernel = ctypes.CDLL(str(path))
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(kernel, name)
        function.restype, function.argtypes = result, arguments
    for name, expected in _LAYOUTS.items():
        if _read_zero_terminated(getattr(kernel, name)()) != expected:
            raise OSError(f"{path.name} was compiled from other versions of the sources")
    return kernel


def _read_zero_terminated(array: Any) -> list[int]:
    """Return the numbers of a C array that ends with a 0."""
    numbers: list[int] = []
    while number := array[len(numbers)]:
        numbers.append(number)
    return numbers


class ThreadPool:
    """A pool of threads for the kernel's calls, one call at a time.

    Args:
        size: the number of threads, the calling one included.

    Attributes:
        handle: the address of the C `ThreadPool`.

    Raises:
        MemoryError: there is no memory for it.
    """

    def __init__(self, size: int) -> None:
        self._library = library()
        self.handle = self._library.thread_pool_new(size)
        if self.handle is None:
            raise MemoryError("No memory for the thread pool.")
        self._process_id = os.getpid()

    # `getpid` is bound here because the module `os` may be gone when the interpreter exits.
    def __del__(self, getpid: Callable[[], int] = os.getpid) -> None:
        created = getattr(self, "handle", None) is not None
        # A forked process has a copy of this object, but not the threads.
        if created and self._process_id == getpid():
            self._library.thread_pool_free(self.handle)


def create_thread_pool(size: int) -> ThreadPool | None:
    """Create a pool of `size` threads; return None if there is no kernel for this processor."""
    return ThreadPool(size) if available() else None


def available() -> bool:
    """Whether there is a kernel for this processor."""
    return library() is not None


def _processor_features() -> set[str]:
    """The feature names in /proc/cpuinfo."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
