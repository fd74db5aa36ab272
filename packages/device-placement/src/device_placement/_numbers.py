"""Which numbers are a size, a count, a duration or a rate: asked wherever one enters."""

from __future__ import annotations

import math
from typing import Final

LARGEST_SIZE: Final = 2**63 - 1
"""Bytes; what the file formats and torch can count."""


def is_count(value: object, *, least: int = 0) -> bool:
    """Whether a value is a whole number from `least` to 2^63 - 1.

    >>> is_count(3), is_count(True), is_count(3.0), is_count(10**30), is_count(0, least=1)
    (True, False, False, False, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= LARGEST_SIZE


def is_finite(value: object) -> bool:
    """Whether a value is a number that a float can hold, neither NaN nor infinite.

    >>> is_finite(0.5), is_finite(2), is_finite(True), is_finite("2"), is_finite(10**400), is_finite(float("nan"))
    (True, True, False, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def quoted(value: object, limit: int = 40) -> str:
    """A value as an error message shows it, at most `limit` characters of it.

    >>> quoted(-1), quoted(10**400)
    ('-1', '1000000000000000000000000000000000000000...')
    """
    if isinstance(value, int) and value.bit_length() > 10_000:
        return "a number of thousands of digits"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
