"""Sizes and durations for people: three significant digits and the unit that fits.

Digits are exact (no floating-point division), the unit changes only where the rounded number reaches it, and a larger
value never gets a text that reads smaller.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Final, Literal

from alloc_spec._errors import AllocValueError

Rounding = Literal["nearest", "down", "up"]

_ROUND: Final[Mapping[str, Callable[[Fraction], int]]] = MappingProxyType(
    {"nearest": lambda value: math.floor(value + Fraction(1, 2)), "down": math.floor, "up": math.ceil}
)
_SIZE_UNITS: Final = tuple((name, Fraction(1024**power)) for power, name in enumerate(("KiB", "MiB", "GiB", "TiB"), 1))
_TIME_UNITS: Final = tuple(
    (name, Fraction(1, 10**power)) for name, power in (("ns", 9), ("us", 6), ("ms", 3), ("s", 0))
)
_MOST_BYTES: Final = 2**63 - 1
_MOST_SECONDS: Final = 10**15


def human_size(size_bytes: int, *, rounding: Rounding = "nearest") -> str:
    """Write a size for people: three significant digits in KiB, MiB, GiB or TiB (base 1024), whole bytes below 1 KiB.

    Args:
        size_bytes: bytes, 0 to 2**63 - 1.
        rounding: `"down"` for what is available, `"up"` for what is needed, so that a reader who follows the number
            is on the safe side.

    Returns:
        Number and unit, without zeros at the end of the decimals.

    Raises:
        AllocValueError: not a whole number of bytes in that range, or an unknown rounding.

    >>> human_size(2684354560), human_size(6785648332), human_size(2**30 - 1), human_size(512)
    ('2.5 GiB', '6.32 GiB', '1 GiB', '512 bytes')
    >>> human_size(2**30 - 1, rounding="down"), human_size(2**30 + 1, rounding="up")
    ('1023 MiB', '1.01 GiB')
    """
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or not 0 <= size_bytes <= _MOST_BYTES:
        raise AllocValueError("size_bytes", size_bytes, "expected a whole number of bytes from 0 to 2**63 - 1")
    if rounding not in _ROUND:
        raise AllocValueError("rounding", rounding, "expected 'nearest', 'down' or 'up'")
    if size_bytes < 1024:
        return f"{size_bytes} byte{'' if size_bytes == 1 else 's'}"
    return _in_unit(Fraction(size_bytes), _SIZE_UNITS, 1024, rounding)


def human_seconds(seconds: float) -> str:
    """Write a duration for people: three significant digits in ns, us, ms or s, whole seconds from 1000 s.

    Args:
        seconds: a finite duration, 0 to 10**15 s; below 5e-12 s it is written as 0 s.

    Returns:
        Number and unit, without zeros at the end of the decimals.

    Raises:
        AllocValueError: not a number in that range (nan, infinite and negative durations are refused).

    >>> human_seconds(2.1449), human_seconds(0.6), human_seconds(0.0000421), human_seconds(1111.3), human_seconds(0)
    ('2.14 s', '600 ms', '42.1 us', '1111 s', '0 s')
    """
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds <= _MOST_SECONDS:
        raise AllocValueError("seconds", seconds, "expected a finite number of seconds from 0 to 10**15")
    text = _in_unit(Fraction(seconds), _TIME_UNITS, 1000, "nearest")
    return "0 s" if text == "0 ns" else text


def _in_unit(value: Fraction, units: tuple[tuple[str, Fraction], ...], base: int, rounding: Rounding) -> str:
    """Write a value in the first of the units in which its rounded number is below the next unit, or in the last."""
    *smaller, largest = units
    for name, unit in smaller:
        scaled, decimals = _three_digits(value / unit, rounding)
        if scaled < base * 10**decimals:
            return f"{_decimal(scaled, decimals)} {name}"
    name, unit = largest
    return f"{_decimal(*_three_digits(value / unit, rounding))} {name}"


def _three_digits(number: Fraction, rounding: Rounding) -> tuple[int, int]:
    """Round to three significant digits, or to a whole number from 1000: the digits, and how many are decimals."""
    decimals = 2 if number < 10 else 1 if number < 100 else 0
    return _ROUND[rounding](number * 10**decimals), decimals


def _decimal(scaled: int, decimals: int) -> str:
    whole, rest = divmod(scaled, 10**decimals)
    return f"{whole}.{rest:0{decimals}d}".rstrip("0") if rest else str(whole)
