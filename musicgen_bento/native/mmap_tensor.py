"""Tensors in memory maps: the system provides their pages at first use, and takes them back on demand. For Linux."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HUGE_PAGE_BYTES = 2**21

_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_MADV_DONTNEED = getattr(mmap, "MADV_DONTNEED", None)
_madvise: Any = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None


class MmapTensor:
    """A tensor of zeros in an anonymous memory map; pages that are never used take no memory.

    Args:
        size: the tensor's size.
        dtype: the tensor's dtype.
        huge: whether to ask for huge pages, which a processor reads faster.

    Attributes:
        tensor: the tensor.
    """

    def __init__(self, *size: int, dtype: torch.dtype = torch.float32, huge: bool = False) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._page_bytes = HUGE_PAGE_BYTES if huge else mmap.PAGESIZE
        self._map = mmap.mmap(-1, max(1, dtype.itemsize * prod(size)), flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # the system may not support huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self.tensor = torch.frombuffer(self._map, dtype=dtype, count=prod(size)).view(size)

    def release_pages(self, part: Tensor) -> None:
        """Release the whole pages of a part of the tensor, which then reads as zeros.

        Pages that the part shares with other parts stay.

        Args:
            part: A contiguous part of the tensor.
        """
        begin = part.data_ptr()
        first = -(-begin // self._page_bytes) * self._page_bytes
        last = (begin + part.nbytes) // self._page_bytes * self._page_bytes
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first - self.tensor.data_ptr(), last - first)


def evict_file_pages(path: Path) -> None:
    """Remove the pages of a mapped file from this process's memory; they are read again at the next use.

    The pages are found by the file's mappings in /proc/self/maps: any other kind of memory would lose its contents.

    Args:
        path: the file; any code may have mapped it.
    """
    if _madvise is None:
        return
    for begin, end in _mappings(str(path.resolve())):
        _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def _mappings(path: str) -> Iterator[tuple[int, int]]:
    """The begin and the end address of each mapping of a file in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == path:
            begin, end = fields[0].split("-")
            yield int(begin, 16), int(end, 16)
