"""Sizes in bytes: units, exact reading and shortest writing.

All units have base 1024. Whatever is not a whole byte is rounded up, so that nobody gets less than asked for.
"""

import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

GIB: Final = 2**30
MAX_BYTES: Final = 2**63 - 1
MAX_NUMBER_CHARACTERS: Final = 40

UNITS: Final[Mapping[str, int]] = MappingProxyType(
    {"b": 1}
    | {
        prefix + ending: 1024**power
        for power, prefix in enumerate("kmgt", start=1)
        for ending in ("", "b", "ib")
    }
)  # fmt: skip
_WRITTEN_UNITS: Final = ("tb", "gb", "mb", "kb", "b")


def read_size(number: str, unit_bytes: int) -> int:
    """Turn the digits of a plain decimal number into bytes, rounded up to a whole byte.

    >>> read_size("2.5", GIB)
    2684354560
    >>> read_size(".1", 1024)
    103
    """
    whole, _, decimals = number.partition(".")
    return _ceil_div(int(whole + decimals) * unit_bytes, 10 ** len(decimals))


def write_number(size_bytes: int, unit_bytes: int) -> str:
    """Write bytes in a unit with the fewest decimals that `read_size` turns into the same bytes.

    >>> write_number(read_size("0.3", GIB), GIB)
    '0.3'
    """
    for decimals in itertools.count():
        scale = 10**decimals
        scaled = size_bytes * scale // unit_bytes
        if _ceil_div(scaled * unit_bytes, scale) == size_bytes:
            break
    whole, rest = divmod(scaled, scale)
    return f"{whole}.{rest:0{decimals}d}" if decimals else str(whole)


def write_size(size_bytes: int) -> str:
    """Write bytes as the shortest text that the grammar reads back as the same bytes; the larger unit breaks a tie.

    >>> write_size(2684354560), write_size(1048577), write_size(0)
    ('2.5gb', '1048577b', '0b')
    """
    texts = (
        write_number(size_bytes, UNITS[unit]) + unit
        for unit in _WRITTEN_UNITS
        if unit == "b" or size_bytes >= UNITS[unit]
    )
    return min(texts, key=len)


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
