"""Tensors in memory maps: when their pages take memory and when they are released."""

from __future__ import annotations

import mmap
from pathlib import Path

import psutil
import torch

from musicgen_bento.native.mmap_tensor import MmapTensor, evict_file_pages


def test_pages_take_memory_when_written_until_released() -> None:
    process, num_bytes = psutil.Process(), 64 * 2**20
    before = process.memory_info().rss
    pages = MmapTensor(4, num_bytes // 16)
    assert process.memory_info().rss - before < num_bytes / 8
    pages.tensor[1].fill_(1.0)
    assert process.memory_info().rss - before > num_bytes / 5
    pages.release_pages(pages.tensor[1])
    assert process.memory_info().rss - before < num_bytes / 8
    assert not pages.tensor.any()


def test_pages_shared_with_other_parts_are_not_released() -> None:
    pages = MmapTensor(mmap.PAGESIZE)  # four pages of float32
    pages.tensor.fill_(1.0)
    quarter = mmap.PAGESIZE // 4
    pages.release_pages(pages.tensor[10 : 3 * quarter - 10])
    sums = [float(part.sum()) for part in pages.tensor.split(quarter)]
    assert sums == [quarter, 0, quarter, quarter]


def test_evicted_file_pages_are_read_again(tmp_path: Path) -> None:
    expected = {
        "a": torch.randn(3, 2**20),
        "b": torch.arange(2**20),
        "strided": torch.randn(2**16, 8)[:, 0],
        "repeated": torch.randn(1).expand(1024, 2**16),  # larger than the file
    }
    torch.save(expected, tmp_path / "file")
    mapped = torch.load(tmp_path / "file", mmap=True)
    for name, tensor in expected.items():
        assert torch.equal(mapped[name], tensor)
    heap = torch.full((2**20,), 7.0)
    process = psutil.Process()
    before = process.memory_info().rss
    evict_file_pages(tmp_path / "another")
    evict_file_pages(tmp_path / "file")
    assert (heap == 7).all()
    assert process.memory_info().rss < before - 0.9 * (tmp_path / "file").stat().st_size
    for name, tensor in expected.items():
        assert torch.equal(mapped[name], tensor)
