"""Whether memory is shared is measured, not assumed: the kernel's own account of the pages of a process."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alloc_spec import human_size

Mode = Literal["file", "store"]

_SMAPS = Path("/proc/self/smaps")
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) ")
_FIELD = re.compile(r"^(Rss|Pss|Anonymous):\s+(\d+) kB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Memory of one process that holds weights, in bytes, as the kernel counts it.

    Attributes:
        resident_bytes: pages that the process has touched.
        proportional_bytes: the same, each page divided by the number of processes that have it (Pss).
        own_bytes: pages that only this process has because it wrote to them.
    """

    resident_bytes: int
    proportional_bytes: int
    own_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharingReport:
    """How the workers of one machine share the weights.

    Attributes:
        mode: ``"file"`` or ``"store"``.
        weights_bytes: size of the model.
        shares: one for each worker; empty where the operating system does not tell.
    """

    mode: Mode
    weights_bytes: int
    shares: tuple[Share, ...]

    @property
    def copies(self) -> float:
        """How many times the pages that the workers touched are in memory: 1.0 is one copy for all.

        Pages that other processes hold too (the object store keeps its own view) count for less.

        >>> half = Share(resident_bytes=100, proportional_bytes=50, own_bytes=0)
        >>> SharingReport(mode="file", weights_bytes=100, shares=(half, half)).copies
        1.0
        """
        touched = max((share.resident_bytes for share in self.shares), default=0)
        return sum(share.proportional_bytes for share in self.shares) / touched if touched else 0.0

    def __str__(self) -> str:
        if not self.shares:
            return f"{human_size(self.weights_bytes)} of weights by {self.mode}; the sharing is not measured here"
        pss = sum(share.proportional_bytes for share in self.shares)
        own = sum(share.own_bytes for share in self.shares)
        return (
            f"{human_size(self.weights_bytes)} of weights by {self.mode}, {len(self.shares)} workers hold "
            f"{human_size(pss)} together ({self.copies:.2f} copies), {human_size(own)} of it private to one"
        )


def measure(spans: Iterable[tuple[int, int]], smaps: Path = _SMAPS) -> Share | None:
    """Account for the mappings that hold the given memory.

    Args:
        spans: (address, bytes) of the tensors.
        smaps: the kernel's account; for tests.

    Returns:
        What they take in this process, or None where the kernel does not say (elsewhere than on Linux).
    """
    if sys.platform != "linux" and smaps is _SMAPS:
        return None
    wanted = sorted(spans)
    totals = {"Rss": 0, "Pss": 0, "Anonymous": 0}
    for begin, end, fields in _mappings(smaps):
        if _overlaps(wanted, begin, end):
            for name in totals:
                totals[name] += fields.get(name, 0)
    return Share(resident_bytes=totals["Rss"], proportional_bytes=totals["Pss"], own_bytes=totals["Anonymous"])


def _mappings(smaps: Path) -> Iterator[tuple[int, int, dict[str, int]]]:
    begin, end, fields = 0, 0, dict[str, int]()
    for line in smaps.read_text(encoding="utf-8", errors="replace").splitlines():
        if head := _HEAD.match(line):
            yield begin, end, fields
            begin, end, fields = int(head[1], 16), int(head[2], 16), {}
        elif field := _FIELD.match(line):
            fields[field[1]] = 1024 * int(field[2])
    yield begin, end, fields


def _overlaps(spans: Sequence[tuple[int, int]], begin: int, end: int) -> bool:
    return any(start < end and begin < start + size for start, size in spans if size)
