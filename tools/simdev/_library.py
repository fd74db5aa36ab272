"""The native library behind typed calls: the only file that knows the C interface of native/c_interface.hpp."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

KINDS = ("sync", "async", "async-pageable", "d2d")
"""Names of the copy kinds in the order of `CopyKind` in native/copies.hpp."""

HOST = -1
"""Stands for the host where a device index stands, as `kHost` does in native/common.hpp."""

_UNCHANGED = -1


class Library:
    """One loaded library. Loading it registers the backend with torch and cannot be undone."""

    def __init__(self, path: Path) -> None:
        """Load the shared library at `path` and declare its functions."""
        library = ctypes.CDLL(str(path))
        self._start = _declare(library, "simdev_start", None, ctypes.c_int)
        self._config = _declare(library, "simdev_config", None, *(ctypes.c_int,) * 5)
        self._set_capacity = _declare(library, "simdev_set_capacity", None, ctypes.c_int, ctypes.c_uint64)
        self._memory = _declare(library, "simdev_memory", None, ctypes.c_int, ctypes.c_void_p)
        self._counters = _declare(library, "simdev_counters", None, ctypes.c_void_p)
        self._corrupt_link = _declare(library, "simdev_corrupt_link", None, *(ctypes.c_int,) * 3)
        self._count_ops = _declare(library, "simdev_count_ops", None, ctypes.c_int)
        self._seed = _declare(library, "simdev_seed", None, ctypes.c_int, ctypes.c_uint64)
        self._reset = _declare(library, "simdev_reset", None)
        self._links = _declare_text(library, "simdev_links")
        self._ops = _declare_text(library, "simdev_ops")
        self._violations = _declare_text(library, "simdev_violations")
        self._take_violations = _declare_text(library, "simdev_take_violations")
        access = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p)
        self._host_access = _declare(library, "simdev_host_access", ctypes.c_int, *access)

    def start(self, count: int) -> None:
        """Set the number of devices."""
        self._start(count)

    def configure(self, *settings: bool | int | None) -> None:
        """Change lazy, race, poison, dry and thread_clocks, in this order, where they are not None."""
        self._config(*(_UNCHANGED if value is None else int(value) for value in settings))

    def set_capacity(self, device: int, size_bytes: int) -> None:
        """Set how many bytes a device holds, or with `HOST` how many can be pinned."""
        self._set_capacity(device, size_bytes)

    def memory(self, device: int) -> tuple[int, ...]:
        """Return the account of a device, or of pinned `HOST` memory, in the order of the fields of `Memory`."""
        values = (ctypes.c_uint64 * 6)()
        self._memory(device, ctypes.addressof(values))
        return tuple(values)

    def counters(self) -> tuple[int, ...]:
        """Return host synchronisations, kernels, and copies still in a queue."""
        values = (ctypes.c_int64 * 3)()
        self._counters(ctypes.addressof(values))
        return tuple(values)

    def corrupt_link(self, src: int, dst: int, on: bool) -> None:
        """Let copies from one device to another deliver wrong bytes, or right ones again."""
        self._corrupt_link(src, dst, int(on))

    def count_ops(self, on: bool) -> None:
        """Count operators by name from now on, or stop."""
        self._count_ops(int(on))

    def ops(self) -> dict[str, int]:
        """Return how often each operator ran while counting was on."""
        pairs = (line.split() for line in self._ops())
        return {name: int(count) for name, count in pairs}

    def links(self) -> list[tuple[int, int, str, int, int]]:
        """Return source, destination (-1: the host), kind, copies and bytes of each pair that was used."""
        rows = ([int(field) for field in line.split()] for line in self._links())
        return [(src, dst, KINDS[kind], count, size_bytes) for src, dst, kind, count, size_bytes in rows]

    def violations(self, *, take: bool) -> tuple[str, ...]:
        """Return what the race detector wrote down, and with `take` forget it in the same step."""
        return tuple(self._take_violations() if take else self._violations())

    def host_access(self, address: int, size_bytes: int, *, write: bool, what: str) -> bool:
        """Report that the host touches bytes; return whether that broke the order and must be raised."""
        return bool(self._host_access(address, size_bytes, int(write), what.encode()))

    def seed(self, device: int, seed: int) -> None:
        """Seed the default generator of a device."""
        self._seed(device, seed)

    def reset(self) -> None:
        """Forget counters, links, violations and peaks."""
        self._reset()


def _declare(library: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> Callable[..., int]:
    function = library[name]
    function.restype = result
    function.argtypes = arguments
    return function


def _declare_text(library: ctypes.CDLL, name: str) -> Callable[[], list[str]]:
    function = _declare(library, name, ctypes.c_int64, ctypes.c_char_p, ctypes.c_int64)

    def lines() -> list[str]:
        size = 0
        # Another thread may lengthen the text between the call that asks its size and the call that copies it.
        while (needed := function(buffer := ctypes.create_string_buffer(size), size)) > size:
            size = needed
        return buffer.value.decode().splitlines()

    return lines
