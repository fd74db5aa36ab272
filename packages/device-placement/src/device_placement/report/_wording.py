"""Bytes and seconds for people."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit for sizes, so that one table or picture uses one."""

    name: str
    exponent: int

    @property
    def meaning(self) -> str:
        """What the name stands for here."""
        return f"2^{self.exponent} bytes"

    def of(self, size_bytes: int) -> str:
        """A size in this unit, two decimals, without its name."""
        return f"{size_bytes / (1 << self.exponent):.2f}"


def unit_for(size_bytes: int) -> Unit:
    """The largest unit of the allocation language that `size_bytes` is at least one of, to two decimals of the smaller.

    >>> unit = unit_for(3 << 29)
    >>> unit.of(3 << 29), unit.name, unit.meaning
    ('1.50', 'GB', '2^30 bytes')
    """
    for name, exponent in (("GB", 30), ("MB", 20)):
        if round(size_bytes / (1 << exponent - 10), 2) >= 1024:
            return Unit(name=name, exponent=exponent)
    return Unit(name="KB", exponent=10)


def size_text(size_bytes: int) -> str:
    """A size with its unit.

    >>> size_text(5 << 20)
    '5.00 MB'
    """
    unit = unit_for(size_bytes)
    return f"{unit.of(size_bytes)} {unit.name}"


def seconds_text(seconds: float) -> str:
    """A duration with its unit: three digits, or whole seconds where these are more.

    >>> seconds_text(2.1449), seconds_text(0.6), seconds_text(0.0000421), seconds_text(1111.3), seconds_text(0)
    ('2.14 s', '600 ms', '42.1 us', '1111 s', '0 s')
    """
    if seconds >= 999.5:
        return f"{seconds:.0f} s"
    for name, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)):
        digits = f"{seconds / scale:.3g}"
        if float(digits) >= 1:
            return f"{digits} {name}"
    return "0 s" if seconds < 5e-13 else f"{digits} ns"


def round_seconds(around: float) -> list[float]:
    """Four durations of the series 1, 2, 5, 10 ...: the first at most a quarter of `around`, the last more than it.

    >>> round_seconds(0.105), round_seconds(0.2), round_seconds(1.0)
    ([0.02, 0.05, 0.1, 0.2], [0.05, 0.1, 0.2, 0.5], [0.2, 0.5, 1.0, 2.0])
    """
    decade = math.floor(math.log10(around)) - 1
    # Written as a person writes them: 2 times 10 ** -2 as a product is not 0.02 in every digit.
    series = [float(f"{step}e{decade + up}") for up in range(3) for step in (1, 2, 5)]
    start = max(index for index, seconds in enumerate(series) if seconds <= around / 4)
    return series[start : start + 4]


def share_text(part: int, whole: int) -> str:
    """A part in percent of the whole.

    >>> share_text(1, 3), share_text(0, 0)
    ('33.3%', '-')
    """
    return f"{100 * part / whole:.1f}%" if whole else "-"
