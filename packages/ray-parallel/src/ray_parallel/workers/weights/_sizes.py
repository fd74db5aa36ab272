"""How large the object store has to be, and whether the machine has room: asked before anything is loaded."""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from alloc_spec import human_size
from ray_parallel.workers._errors import InvalidRequestError
from ray_parallel.workers.weights._errors import ObjectStoreSizeError

MIB = 1 << 20
GIB = 1 << 30
SMALLEST_STORE_BYTES = 80 * MIB
"""Ray starts no smaller store; without weights in it, it holds commands and latents."""

FILLED_SHARE = 0.95
"""Of a store that can be filled: its allocator loses some room to alignment and gaps."""

_WORKING_BYTES = 128 * MIB
"""Room for commands, progress and latents beside the weights."""

_LARGEST_SHARE = 0.9
"""Of the free memory; the workers compute in the rest."""


_LARGEST_ON_DISK = 256 * MIB
"""A store up to this size may lie in the cluster's folder where shared memory is too small, as in most containers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSize:
    """Bytes of the object store of one machine, and whether it lies in shared memory or in the cluster's folder."""

    size_bytes: int
    in_shared_memory: bool


def store_size(
    shared_bytes: int, requested_gib: float, *, shm_bytes: int, disk_bytes: int, memory_bytes: int
) -> StoreSize:
    """Size of the object store of one machine.

    A small store, such as one without weights in it, lies in the cluster's folder when /dev/shm has no room for it.

    Args:
        shared_bytes: weights that will be put into it; 0 when they are mapped from files.
        requested_gib: what the user asked for (`ray_object_store_gb`); 0 computes it from `shared_bytes`.
        shm_bytes: room in /dev/shm, where the store lives.
        disk_bytes: room in the temporary folder.
        memory_bytes: memory that is available.

    Raises:
        ObjectStoreSizeError: the weights do not fit into what was asked for, or the machine has no such room.
        InvalidRequestError: the request is negative or no number.

    >>> store_size(0, 0.0, shm_bytes=8 << 30, disk_bytes=8 << 30, memory_bytes=8 << 30).size_bytes >> 20
    80
    >>> store_size(0, 0.0, shm_bytes=64 << 20, disk_bytes=8 << 30, memory_bytes=8 << 30).in_shared_memory
    False
    """
    if not 0 <= requested_gib < math.inf:
        raise InvalidRequestError(f"ray_object_store_gb is {requested_gib}; give GiB, or 0 to compute what is needed")
    needed = math.ceil(shared_bytes / FILLED_SHARE) + _WORKING_BYTES if shared_bytes else SMALLEST_STORE_BYTES
    size = int(requested_gib * GIB) if requested_gib else needed
    if size < needed:
        raise ObjectStoreSizeError(
            what="the weights in the object store" if shared_bytes else "commands and latents in the object store",
            needed_bytes=needed,
            available_bytes=size,
            where=f"ray_object_store_gb = {requested_gib:g}",
            remedy="set ray_object_store_gb to 0 to have it computed, or load the model from a file, which needs none",
        )
    in_shared_memory = size <= _LARGEST_SHARE * shm_bytes
    if not in_shared_memory and (size > _LARGEST_ON_DISK or size > _LARGEST_SHARE * disk_bytes):
        raise _too_small(size, "/dev/shm", shm_bytes, "raise its limit (in a container: --shm-size)")
    if size > _LARGEST_SHARE * memory_bytes:
        raise _too_small(size, "the memory of this machine", memory_bytes, "free memory")
    return StoreSize(size_bytes=size, in_shared_memory=in_shared_memory)


def _too_small(size: int, where: str, room: int, remedy: str) -> ObjectStoreSizeError:
    return ObjectStoreSizeError(
        what=f"an object store of {human_size(size)} and what works beside it",
        needed_bytes=int(size / _LARGEST_SHARE),
        available_bytes=room,
        where=where,
        remedy=f"load the model from a file that every worker sees, which needs no store, or {remedy}",
    )


def shm_free_bytes() -> int:
    """Room where Ray keeps its store: /dev/shm on Linux, the temporary folder elsewhere."""
    return shutil.disk_usage("/dev/shm" if sys.platform == "linux" else "/tmp").free


def disk_free_bytes() -> int:
    """Room in the temporary folder, where a cluster has its folder."""
    return shutil.disk_usage(tempfile.gettempdir()).free


def memory_free_bytes(root: Path = Path("/")) -> int:
    """Memory that a process can get without swapping, limits of containers included.

    macOS reports what is installed, Windows nothing without another library: there the store's own check has to do.

    Args:
        root: where ``proc`` and ``sys`` are; for tests.
    """
    if sys.platform == "win32":
        return sys.maxsize
    if sys.platform != "linux":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = (root / "proc/meminfo").read_text(encoding="ascii")
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo, re.MULTILINE)
    free = int(found[1]) * 1024 if found else 0
    group = root / "sys/fs/cgroup"
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except OSError:  # no control groups of the second version, or the top one, which has no limit
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used))
