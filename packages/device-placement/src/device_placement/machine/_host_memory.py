"""How much memory the host has and how much a model may take, without a dependency: limits of containers count."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from device_placement._errors import DeviceUnavailableError

_ROOT = Path("/")
_CGROUP_FILES = (
    # (where a hierarchy is mounted, its limit, its usage), second and first version of the kernel's control groups.
    ("sys/fs/cgroup", "memory.max", "memory.current"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def host_memory(root: Path = _ROOT) -> tuple[int, int]:
    """Free and total bytes of host memory that this process may use.

    Free is what is left without swapping, caches that the system would give up included. On Linux a limit of the
    container counts as the total where it is lower.

    Args:
        root: where ``proc`` and ``sys`` are; for tests.

    Raises:
        DeviceUnavailableError: the operating system does not say.
    """
    if sys.platform == "win32":
        return _windows_memory()
    if sys.platform == "darwin":
        answer = _vm_stat()
        total_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return min(parse_vm_stat(answer), total_bytes), total_bytes
    return _linux_memory(root)


def _linux_memory(root: Path) -> tuple[int, int]:
    try:
        fields = _kilobytes((root / "proc/meminfo").read_text(encoding="ascii"))
        free_bytes, total_bytes = fields["MemAvailable"], fields["MemTotal"]
    except (OSError, KeyError) as error:
        raise DeviceUnavailableError(
            "cpu", f"/proc/meminfo cannot be read ({error})", "describe the machine by hand with Hardware(...)"
        ) from error
    for limit_bytes, used_bytes in _limits(root):
        total_bytes = min(total_bytes, limit_bytes)
        free_bytes = min(free_bytes, max(0, limit_bytes - used_bytes))
    return free_bytes, total_bytes


def _kilobytes(meminfo: str) -> dict[str, int]:
    """Fields of /proc/meminfo in bytes."""
    return {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and usage in bytes of every control group that this process is in and that has a limit."""
    for mount, limit_name, usage_name in _CGROUP_FILES:
        for folder in _groups(root, root / mount):
            try:
                limit = (folder / limit_name).read_text(encoding="ascii").strip()
                used_bytes = int((folder / usage_name).read_text(encoding="ascii"))
            except OSError:  # no such hierarchy here, or its top, which has no limit
                continue
            if limit != "max":
                yield int(limit), used_bytes - _reclaimable(folder)


def _groups(root: Path, mount: Path) -> Iterator[Path]:
    """Folders of the memory groups of this process, from its own to the top one.

    Inside a container the path that the kernel names may lie outside what is mounted; its last existing parents
    count.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # a kernel without control groups
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            group = Path(path)
            yield from (mount / str(folder).lstrip("/") for folder in (group, *group.parents))


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files that are charged to a group but would be given up."""
    try:
        fields = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return 0
    prefix = "total_" if "total_inactive_file" in fields else ""
    return sum(int(fields.get(f"{prefix}{name}", 0)) for name in ("inactive_file", "active_file"))


def _vm_stat() -> str:
    try:
        return subprocess.run(["vm_stat"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceUnavailableError(
            "cpu", f"vm_stat cannot be run ({error})", "describe the machine by hand with Hardware(...)"
        ) from error


def parse_vm_stat(answer: str) -> int:
    """Free bytes by macOS's ``vm_stat``: free pages and those that it would give up.

    >>> head = "Mach Virtual Memory Statistics: (page size of 16384 bytes)"
    >>> parse_vm_stat(chr(10).join([head, "Pages free:  2.", "Pages active:  5.", "Pages inactive:  3."]))
    81920
    """
    page = re.search(r"page size of (\d+) bytes", answer)
    if page is None:
        raise DeviceUnavailableError(
            "cpu", "the answer of vm_stat is not understood", "describe the machine by hand with Hardware(...)"
        )
    pages = re.findall(r"^Pages (?:free|inactive|speculative|purgeable):\s+(\d+)\.", answer, re.MULTILINE)
    return int(page[1]) * sum(int(count) for count in pages)


def _windows_memory() -> tuple[int, int]:
    """Ask GlobalMemoryStatusEx; only there is no standard library for it."""
    if sys.platform != "win32":
        raise AssertionError("only called on Windows")
    import ctypes

    class MemoryStatus(ctypes.Structure):
        """MEMORYSTATUSEX of the Windows API."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("memory_load", ctypes.c_uint32),
            ("total_physical", ctypes.c_uint64),
            ("available_physical", ctypes.c_uint64),
            ("total_page_file", ctypes.c_uint64),
            ("available_page_file", ctypes.c_uint64),
            ("total_virtual", ctypes.c_uint64),
            ("available_virtual", ctypes.c_uint64),
            ("available_extended_virtual", ctypes.c_uint64),
        )

    status = MemoryStatus()
    status.length = ctypes.sizeof(MemoryStatus)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise DeviceUnavailableError(
            "cpu", "GlobalMemoryStatusEx failed", "describe the machine by hand with Hardware(...)"
        )
    return int(status.available_physical), int(status.total_physical)
