"""Memory that the system gives page by page as it is written or read, and takes back on demand. On Linux."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor

_UNRESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000)


class Pages:
    """A tensor of zeros most of which may never be touched.

    Attributes:
        tensor: of the size asked for.
    """

    def __init__(self, *size: int, dtype: torch.dtype = torch.float32, huge: bool = False) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _UNRESERVED
        self._map = mmap.mmap(-1, max(1, dtype.itemsize * prod(size)), flags=flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel that has no huge pages
                self._map.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
        self.tensor = torch.frombuffer(self._map, dtype=dtype, count=prod(size)).view(size)

    def forget(self, part: Tensor) -> None:
        """Give a part back to the system, to be zeros again; what shares a page with others stays.

        Args:
            part: a contiguous one of the tensor.
        """
        begin = part.data_ptr() - self.tensor.data_ptr()
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (begin + part.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


def forget_file(tensors: Iterable[Tensor]) -> None:
    """Take pages of a mapped file out of this process's memory; those that are wanted again are read again.

    Args:
        tensors: as `torch.load` maps them, each with a storage that is a part of the file. Memory of any other kind
            would be zeros after this.
    """
    if _madvise is None:
        return
    storages = (tensor.untyped_storage() for tensor in tensors)  # a tensor of its own may be larger than the file
    for begin, size in {(storage.data_ptr(), storage.nbytes()) for storage in storages}:
        first = begin // mmap.PAGESIZE * mmap.PAGESIZE  # what comes before is of the file too
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(begin + size - first), _DONT_NEED)


_DONT_NEED = getattr(mmap, "MADV_DONTNEED", None)
_madvise: Any = None if _DONT_NEED is None else getattr(ctypes.CDLL(None), "madvise", None)
