"""Bytes and seconds for people: the one place that rounds them."""

from typing import Final

_SIZE_UNITS: Final = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
_TIME_UNITS: Final = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9))


def human_size(size_bytes: int) -> str:
    """Round bytes to two decimals, in the largest unit of base 1024 that they are at least one of.

    Args:
        size_bytes: not negative.

    Returns:
        the text; what rounds to 1024 of a unit is one of the next, so "1024 MiB" is never written.

    Examples:
        >>> human_size(2684354560), human_size(6785648332), human_size(512), human_size(2**30 - 1)
        ('2.5 GiB', '6.32 GiB', '512 bytes', '1 GiB')
    """
    for name, unit_bytes in _SIZE_UNITS:
        # Not 1024 of the next smaller unit either, as what is just below rounds to.
        if round(size_bytes * 1024 / unit_bytes, 2) >= 1024:
            return f"{size_bytes / unit_bytes:.2f}".rstrip("0").rstrip(".") + f" {name}"
    return f"{size_bytes} bytes"


def human_seconds(seconds: float) -> str:
    """Round a duration to three significant digits, or to whole seconds where these are more.

    Args:
        seconds: not negative; below half a picosecond is 0.

    Examples:
        >>> human_seconds(2.1449), human_seconds(0.6), human_seconds(0.0000421), human_seconds(1111.3), human_seconds(0)
        ('2.14 s', '600 ms', '42.1 us', '1111 s', '0 s')
    """
    if seconds >= 999.5:
        return f"{seconds:.0f} s"
    for name, scale in _TIME_UNITS:
        digits = f"{seconds / scale:.3g}"
        if float(digits) >= 1:
            return f"{digits} {name}"
    return "0 s" if seconds < 5e-13 else f"{digits} ns"
