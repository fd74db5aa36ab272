"""What an entry can ask for: seven kinds of amount, each with its canonical text."""

from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

from alloc_spec._errors import AllocValueError
from alloc_spec._sizes import MAX_BYTES, MAX_NUMBER_CHARACTERS, write_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytes:
    """So many bytes of the model: `2.5gb`."""

    size_bytes: int

    def __post_init__(self) -> None:
        check_size("size_bytes", self.size_bytes)

    def __str__(self) -> str:
        return write_size(self.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Percent:
    """A share of the model: `25%`. Normalised to the sum where a text has nothing but percentages."""

    percent: Decimal

    def __post_init__(self) -> None:
        _check_number("percent", self.percent)

    def __str__(self) -> str:
        return f"{_plain(self.percent)}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFraction:
    """The fraction of the device's total memory that the model may use at most: `0.5`."""

    fraction: Decimal

    def __post_init__(self) -> None:
        _check_number("fraction", self.fraction)
        if self.fraction > 1:
            raise AllocValueError("fraction", self.fraction, "a device has no more than all of its memory; use 0 to 1")

    def __str__(self) -> str:
        return _plain(self.fraction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Free:
    """All free memory of the device except so many bytes: `free-1gb`, or `free` alone."""

    keep_bytes: int = 0

    def __post_init__(self) -> None:
        check_size("keep_bytes", self.keep_bytes)

    def __str__(self) -> str:
        return f"free-{write_size(self.keep_bytes)}" if self.keep_bytes else "free"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Whatever the other entries leave: `*`. With an expectation, `5gb*`, more than that is a warning."""

    expected_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.expected_bytes is not None:
            check_size("expected_bytes", self.expected_bytes)

    def __str__(self) -> str:
        return "*" if self.expected_bytes is None else f"{write_size(self.expected_bytes)}*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto:
    """For the planner to decide: `auto`."""

    def __str__(self) -> str:
        return "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Donated:
    """A part of the bytes that the simple controls move; all donors share one total and are filled in order."""

    total_bytes: int

    def __post_init__(self) -> None:
        check_size("total_bytes", self.total_bytes)


Amount: TypeAlias = Bytes | Percent | DeviceFraction | Free | Rest | Auto | Donated


def check_size(field: str, value: int) -> None:
    """Refuse what is not a whole number of bytes from 0 to 2**63 - 1.

    Raises:
        AllocValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise AllocValueError(field, value, "bytes are whole numbers; pass an int")
    if not 0 <= value <= MAX_BYTES:
        raise AllocValueError(field, value, f"pass 0 to {MAX_BYTES} bytes")


def _check_number(field: str, value: Decimal) -> None:
    if not isinstance(value, Decimal):
        raise AllocValueError(field, value, "pass a decimal.Decimal, which keeps the digits as they were written")
    if not value.is_finite() or value.is_signed():
        raise AllocValueError(field, value, "pass a finite number that is not negative")
    # The exponents first: written out, 1e999999999 would take a gigabyte.
    exponents = (value.adjusted(), int(value.as_tuple().exponent))
    if max(map(abs, exponents)) > 2 * MAX_NUMBER_CHARACTERS or len(_plain(value)) > MAX_NUMBER_CHARACTERS:
        raise AllocValueError(field, value, f"pass a number of at most {MAX_NUMBER_CHARACTERS} characters")


def _plain(value: Decimal) -> str:
    digits = format(value, "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits
