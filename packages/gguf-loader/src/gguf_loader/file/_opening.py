"""Opening a file that may be anything: regular files only, and a stamp that notices when one was changed since."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf_loader._errors import GgufFormatError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: str) -> BinaryIO:
    """Open a regular file to read its bytes; never waits, as opening a named pipe would.

    Raises:
        GgufFormatError: the path leads to a folder, pipe, socket or device.
        OSError: the file cannot be opened.
    """
    _require_regular(Path(path).stat(), path)  # a socket cannot be opened, and opening a device may act on it
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        _require_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


@dataclass(frozen=True, slots=True)
class FileStamp:
    """Size, time of change and inode of a file when its header was read, to notice that it was changed since."""

    size_bytes: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> FileStamp:
        """The stamp of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)

    def check(self, descriptor: int, path: str) -> None:
        """Raise unless the open file still is the one that the stamp was taken from.

        Raises:
            GgufFormatError: its size, time of change or inode differs.
        """
        if FileStamp.of(descriptor) != self:
            raise GgufFormatError(
                "the file was changed after its header was read", path=path, remedy="read the header again"
            )


def _require_regular(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for matches, kind in _KINDS if matches(status.st_mode)), "a special file")
        raise GgufFormatError(f"{kind}, not a regular file", path=path, remedy="choose a GGUF file")
