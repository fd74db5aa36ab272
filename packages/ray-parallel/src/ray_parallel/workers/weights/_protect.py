"""Read-only pages: a write to weights that all workers read ends the writer before it can change their results."""

from __future__ import annotations

import ctypes
import mmap
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_READ = 1
_READ_WRITE = 3


def protect(arrays: Sequence[np.ndarray[tuple[int], np.dtype[np.uint8]]]) -> int:
    """Make the whole pages of one object of the store read only until its last array is collected.

    Torch has no read-only tensors, so this is left to the memory itself: a write to such a page is a segmentation
    fault. The first and the last page may hold other objects too and are left alone.

    Args:
        arrays: all arrays of the object, which lie one behind the other.

    Returns:
        Bytes that are protected; 0 for an object so small that Ray sends a copy to each reader, and where the operating
        system has no such call (elsewhere than on Linux).

    Raises:
        OSError: the operating system refuses.
    """
    if sys.platform != "linux":
        return 0
    begin = min(array.ctypes.data for array in arrays)
    end = max(array.ctypes.data + array.nbytes for array in arrays)
    start = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    size_bytes = end // mmap.PAGESIZE * mmap.PAGESIZE - start
    if size_bytes <= 0 or not _is_shared(start, start + size_bytes):
        return 0
    _mprotect(start, size_bytes, _READ)
    alive = len(arrays)

    def collected() -> None:
        nonlocal alive
        alive -= 1
        if not alive:
            # The store may now give the memory to the next object, which has to be written.
            _mprotect(start, size_bytes, _READ_WRITE)

    for array in arrays:
        weakref.finalize(array, collected).atexit = False
    return size_bytes


def _is_shared(start: int, end: int) -> bool:
    """Whether memory lies in one mapping that other processes have too; this process's own must not change."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, permissions, *_ = line.split(maxsplit=2)
        low, high = (int(address, 16) for address in span.split("-"))
        if low <= start < high:
            return end <= high and permissions.endswith("s")
    return False


def _mprotect(address: int, size_bytes: int, allowed: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes), ctypes.c_int(allowed)):
        raise OSError(ctypes.get_errno(), f"mprotect of {size_bytes} bytes was refused")
