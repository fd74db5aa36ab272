"""Numbers of tables and pictures: one unit for a column, shares, round durations."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A unit for the sizes of one table or picture.

    Attributes:
        name: ``"GiB"``, ``"MiB"`` or ``"KiB"``.
        exponent: it is 2 to this power bytes.
    """

    name: str
    exponent: int

    def of(self, size_bytes: int) -> str:
        """A size in this unit, two decimals, without its name."""
        return f"{size_bytes / (1 << self.exponent):.2f}"


def unit_for(size_bytes: int) -> Unit:
    """The largest unit that `size_bytes` is at least one of, to two decimals of the smaller.

    >>> unit = unit_for(3 << 29)
    >>> unit.of(3 << 29), unit.name
    ('1.50', 'GiB')
    """
    for name, exponent in (("GiB", 30), ("MiB", 20)):
        if round(size_bytes / (1 << exponent - 10), 2) >= 1024:
            return Unit(name=name, exponent=exponent)
    return Unit(name="KiB", exponent=10)


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
