"""The temporary folder of a local cluster: short enough for sockets, gone afterwards, even after a crash."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

_PREFIX = "ray-parallel-"
_LOCK = "in-use"
_LONGEST = 28
"""Characters of the parent folder; Ray's sockets add about 77, and a socket's path may have 107."""

_TOKEN = secrets.token_hex(32)


class ClusterFolder:
    """A folder that exists while its owner lives.

    The owner holds a lock on a file in it, which the operating system releases however the owner ends. So the next
    owner can tell what an interrupted one left behind, and removes it.

    Only its owner can enter it. Ray opens what it makes to everybody, so it gets a folder inside.

    Attributes:
        path: the folder.
        token: a file with the secret that the cluster asks for; this process has one for all of its clusters, since Ray
            reads it once.

    Args:
        parent: where to make it; the temporary folder of the system by default.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = parent or _short_parent()
        remove_left_behind(parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # mode 0700
        # Its name comes after the lock: another process would take an unlocked one for left behind.
        unnamed = self.path / f"{_LOCK}-soon"
        self._lock = os.open(unnamed, os.O_CREAT | os.O_RDWR, 0o600)
        if _try_lock(self._lock):
            unnamed.rename(self.path / _LOCK)
        self.token = self.path / "token"
        with open(self.token, "x", opener=_private) as file:
            file.write(_TOKEN)

    @property
    def for_ray(self) -> Path:
        """Where Ray keeps its logs and sockets; Ray makes it."""
        return self.path / "r"

    @property
    def for_store(self) -> Path:
        """Where the object store lies when it is not in shared memory."""
        return self.path

    def remove(self, *, patience_seconds: float = 5.0) -> None:
        """Remove it, once; what still writes into it while it ends is waited for.

        Raises:
            OSError: something keeps writing into it.
        """
        if self._lock < 0:
            return
        os.close(self._lock)
        self._lock = -1
        give_up = time.monotonic() + patience_seconds
        while self.path.exists():
            try:
                shutil.rmtree(self.path)
            except OSError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)


def remove_left_behind(parent: Path) -> list[Path]:
    """Remove the folders of clusters whose process is gone; returns them."""
    removed = []
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or removed by somebody else just now
            lock = os.open(folder / _LOCK, os.O_RDWR)
            try:
                if _try_lock(lock):
                    _remove_lock_last(folder)
                    removed.append(folder)
            finally:
                os.close(lock)
    return removed


def _remove_lock_last(folder: Path) -> None:
    """Remove a folder that somebody may still write into: what is left keeps its lock, for the next one who tries."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink()
    shutil.rmtree(folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _short_parent() -> Path:
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= _LONGEST or sys.platform == "win32" else Path("/tmp")


def _try_lock(descriptor: int) -> bool:
    """Lock a file; False when another process holds it, or where there is no such lock (Windows)."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
