"""Memory that the system gives page by page as it is written or read, and takes back on demand. On Linux."""

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

_UNRESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000)


HUGE_PAGE_BYTES = 2**21  # bytes of a large page


class MmapTensor:
    """A tensor of zeros most of which may never be touched.

    Args:
        size: of the tensor.
        dtype: of its numbers.
        huge: whether large pages are wanted, which a processor reads faster.

    Attributes:
        tensor: of the size asked for.
    """

    def __init__(self, *size: int, dtype: torch.dtype = torch.float32, huge: bool = False) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _UNRESERVED
        self._page = HUGE_PAGE_BYTES if huge else mmap.PAGESIZE
        self._map = mmap.mmap(-1, max(1, dtype.itemsize * prod(size)), flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel that has no huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self.tensor = torch.frombuffer(self._map, dtype=dtype, count=prod(size)).view(size)

    def release_pages(self, part: Tensor) -> None:
        """Give a part back to the system, to be zeros again; what shares a page with others stays.

        Args:
            part: a contiguous one of the tensor.
        """
        begin = part.data_ptr()
        first = -(-begin // self._page) * self._page
        last = (begin + part.nbytes) // self._page * self._page
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first - self.tensor.data_ptr(), last - first)


def evict_file_pages(path: Path) -> None:
    """Take the pages of a mapped file out of this process's memory; those that are wanted again are read again.

    By where the system has mapped it, and not by what lies there: memory of any other kind would be zeros after this.

    Args:
        path: of the file, whoever has mapped it.
    """
    if _madvise is None:
        return
    for begin, end in _mapped(str(path.resolve())):
        _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONT_NEED)


def _mapped(path: str) -> Iterator[tuple[int, int]]:
    """Where a file lies in this process's memory: begin and end of each part."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == path:
            begin, end = fields[0].split("-")
            yield int(begin, 16), int(end, 16)


_DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)
_madvise: Any = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
