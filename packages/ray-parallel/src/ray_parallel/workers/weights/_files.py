"""Files as a transport: every worker that sees the same file maps it copy-on-write, and the pages are shared.

A file must not change while workers use it. Its stamp is compared before each mapping. One that is cut off later ends
whoever reads the missing pages (SIGBUS), which nothing in the process can prevent.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from block_discovery import NotRegularFileError, open_regular, stamp_of
from ray_parallel.workers.weights._errors import WeightsError

_DIGEST_BYTES = 1 << 20
# Linux: <bits/mman-map-flags-generic.h>; Python's mmap module names it from 3.13 on.
_MAP_NORESERVE = 0x4000


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What distinguishes a file from any other at the same path, also from a copy on another machine.

    Attributes:
        path: absolute path.
        size_bytes: its length.
        modified_ns: when it was last written, nanoseconds.
        inode: its number in the file system.
        digest: BLAKE2 of its first MiB, which holds the header of a checkpoint.
    """

    path: str
    size_bytes: int
    modified_ns: int
    inode: int
    digest: str

    def is_here(self) -> bool:
        """Whether this machine sees the file, unchanged."""
        try:
            return stamp(self.path) == self
        except (OSError, WeightsError):
            return False


def stamp(path: str | os.PathLike[str]) -> FileStamp:
    """Describe a file so that another process, or another machine, can tell whether it sees the same one.

    Raises:
        WeightsError: it is a folder, a pipe or a device.
        OSError: it cannot be read.
    """
    path = Path(path).absolute()
    try:
        file = open_regular(path)
    except NotRegularFileError as error:
        raise WeightsError(str(path), error.reason, error.remedy) from error
    with file:
        digest = hashlib.blake2b(file.read(_DIGEST_BYTES), digest_size=16).hexdigest()
        found = stamp_of(file)
        return FileStamp(
            path=str(path),
            size_bytes=found.size_bytes,
            modified_ns=found.modified_ns,
            inode=found.inode,
            digest=digest,
        )


def map_file(file: FileStamp) -> mmap.mmap:
    """Map a file copy-on-write: it is read page by page when used, and what is written stays in this process.

    The mapping lives as long as any tensor made of it.

    Raises:
        WeightsError: it is not the file of the stamp.
        OSError: it cannot be mapped.
    """
    if not file.is_here():
        raise WeightsError(
            file.path, "is not the file that was shared", "do not change a file while workers use it, or share it again"
        )
    with open_regular(file.path) as opened:
        if sys.platform == "linux":
            # Without NORESERVE the kernel wants swap for every page that could be written, which a model seldom has.
            return mmap.mmap(
                opened.fileno(),
                file.size_bytes,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        return mmap.mmap(opened.fileno(), file.size_bytes, access=mmap.ACCESS_COPY)
