"""Loading the C kernel: which variant is selected, which files are refused, and the thread pool."""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

import pytest
import torch

from musicgen_bento.codec.native_ops import NativeOps
from musicgen_bento.native import bindings
from tests.support.kernel_variants import RUNNABLE_VARIANTS


def test_every_variant_is_compiled_and_one_runs_here() -> None:
    names = {name for variants in bindings.VARIANTS.values() for name, _ in variants}
    assert {path.stem for path in bindings.FOLDER.glob("*.so")} == names
    assert RUNNABLE_VARIANTS
    assert bindings.available()


def test_the_fastest_supported_variant_is_selected() -> None:
    x86 = bindings.VARIANTS["x86_64"]
    avx512, avx2 = x86[0][1], x86[1][1]
    assert bindings.select_variant(avx512 | avx2 | {"sse2"}, x86) == "x86_64-avx512"
    assert bindings.select_variant(avx2 | {"avx512f"}, x86) == "x86_64-avx2"
    assert bindings.select_variant({"sse2"}, x86) is None


def test_a_kernel_of_other_sources_or_a_missing_one_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """C and Python both declare the structures; a kernel whose sizes differ is refused, as if the file were missing."""
    bindings.library.cache_clear()
    with monkeypatch.context() as patch:
        sizes = bindings._LAYOUTS["decoder_layout"]
        other_sizes = [size + 8 * (size == ctypes.sizeof(bindings.SequenceStep)) for size in sizes]
        assert other_sizes != sizes
        patch.setitem(bindings._LAYOUTS, "decoder_layout", other_sizes)
        assert bindings.library() is None
    bindings.library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(bindings, "FOLDER", tmp_path)
        assert bindings.library() is None
    bindings.library.cache_clear()
    assert bindings.library() is not None


def test_deleting_a_thread_pool_ends_its_threads() -> None:
    before = count_threads()
    pool = bindings.ThreadPool(4)
    assert count_threads() == before + 3
    del pool
    assert count_threads() == before


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_threads_with_pools_of_their_own_call_the_kernel_at_the_same_time() -> None:
    results: list[torch.Tensor] = []

    def run_convolutions() -> None:
        conv1d = NativeOps(bindings.ThreadPool(2)).conv1d(torch.ones(16, 4, 3), None, 1, 1)
        results.extend(conv1d(torch.ones(1, 64, 4)) for _ in range(50))

    threads = [threading.Thread(target=run_convolutions) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    assert all((result == 12).all() for result in results)
