"""Opening files that are files: no pipe that waits for a writer, no device, no folder, and the same file as before."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from block_discovery._errors import ChangedFileError, NotRegularFileError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What distinguishes a file from another, or from itself after a change.

    Attributes:
        size_bytes: its length.
        modified_ns: when it was last written, in nanoseconds, as the file system says.
        inode: its number in the file system; another one after the file was replaced.
        device: the number of the file system.
    """

    size_bytes: int
    modified_ns: int
    inode: int
    device: int


def open_regular(path: str | os.PathLike[str], *, stamp: FileStamp | None = None) -> BinaryIO:
    """Open a regular file for reading bytes; never waits, and never reads from a device.

    Args:
        path: the file; symbolic links are followed.
        stamp: what `stamp_of` returned for the file earlier; None accepts any.

    Raises:
        NotRegularFileError: it is a folder, a pipe, a socket or a device.
        ChangedFileError: it is not the file of the stamp any more.
        OSError: it cannot be opened.
    """
    # Before it is opened as well: opening some devices does something.
    _require_regular(path, Path(path).stat())
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 - Path.open has no opener
    try:
        _require_regular(path, os.fstat(file.fileno()))
        if stamp is not None and stamp_of(file) != stamp:
            raise ChangedFileError(
                "the file has changed since its header was read",
                subject=str(path),
                remedy="leave a file alone while it is in use, and read it again after a change",
            )
    except BaseException:
        file.close()
        raise
    return file


def stamp_of(file: BinaryIO | str | os.PathLike[str]) -> FileStamp:
    """Size, time and identity of an open file, or of the file at a path.

    Raises:
        OSError: there is no such file.
    """
    status = Path(file).stat() if isinstance(file, (str, os.PathLike)) else os.fstat(file.fileno())
    return FileStamp(
        size_bytes=status.st_size, modified_ns=status.st_mtime_ns, inode=status.st_ino, device=status.st_dev
    )


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def _require_regular(path: str | os.PathLike[str], status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = next((name for matches, name in _KINDS if matches(status.st_mode)), "no regular file")
    raise NotRegularFileError(f"this is {kind}", subject=str(path), remedy="name a regular file")
