"""Bytes and seconds for people."""

from __future__ import annotations

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
    """The largest unit of the allocation language that `size_bytes` is at least one of.

    >>> unit = unit_for(3 << 29)
    >>> unit.of(3 << 29), unit.name, unit.meaning
    ('1.50', 'GB', '2^30 bytes')
    """
    for name, exponent in (("GB", 30), ("MB", 20)):
        if size_bytes >> exponent:
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
    """A duration with its unit, three digits.

    >>> seconds_text(2.1449), seconds_text(0.6), seconds_text(0.0000421), seconds_text(111.3), seconds_text(0)
    ('2.14 s', '600 ms', '42.1 us', '111 s', '0 s')
    """
    for name, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns" if seconds else "0 s"


def share_text(part: int, whole: int) -> str:
    """A part in percent of the whole.

    >>> share_text(1, 3), share_text(0, 0)
    ('33.3%', '-')
    """
    return f"{100 * part / whole:.1f}%" if whole else "-"
