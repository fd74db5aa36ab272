"""Sizes and durations for people: three digits, the right unit, never a smaller text for a larger value."""

import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alloc_spec
from alloc_spec import AllocValueError, human_seconds, human_size
from alloc_spec._human import Rounding

MAX_BYTES = 2**63 - 1
BYTES = {unit: Decimal(1024) ** power for power, unit in enumerate(("bytes", "KiB", "MiB", "GiB", "TiB"))}
SECONDS = {"ns": Decimal("1e-9"), "us": Decimal("1e-6"), "ms": Decimal("1e-3"), "s": Decimal(1)}

near_units = st.builds(
    lambda unit, off: max(0, unit + off), st.sampled_from([2**10, 2**20, 2**30, 2**40]), st.integers(-(2**32), 2**32)
)
sizes = st.one_of(st.integers(0, MAX_BYTES), st.integers(0, 2**21), near_units)
seconds = st.one_of(
    st.floats(0, 1e6),
    st.floats(0, 1e-6),
    st.builds(lambda unit, by: unit * by, st.sampled_from([1e-9, 1e-6, 1e-3, 1.0, 1e3]), st.floats(0.99, 1.01)),
)


def read_back(text: str, units: dict[str, Decimal]) -> Decimal:
    number, unit = text.split()
    return Decimal(number) * units[unit if unit in units else "bytes"]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1500, "1.46 KiB"),
        (2**20 - 1, "1 MiB"),
        (2**20 - 600, "1023 KiB"),
        (2**30 - 1, "1 GiB"),
        (100 * 2**20, "100 MiB"),
        (10 * 2**30, "10 GiB"),
        (6786048329, "6.32 GiB"),
        (3 * 2**40 // 2, "1.5 TiB"),
        (MAX_BYTES, "8388608 TiB"),
    ],
)
def test_sizes_have_three_digits_at_most_and_the_unit_that_fits(size_bytes: int, text: str) -> None:
    assert human_size(size_bytes) == text


@given(sizes, st.sampled_from(["nearest", "down", "up"]))
def test_a_size_is_right_to_its_last_digit_and_below_the_next_unit(size_bytes: int, rounding: Rounding) -> None:
    text = human_size(size_bytes, rounding=rounding)
    shown = read_back(text, BYTES)
    number, unit = text.split()
    assert unit == "TiB" or Decimal(number) < 1024
    assert "." not in number or len(number) <= 4
    assert abs(shown - size_bytes) <= size_bytes / Decimal("99.9" if rounding != "nearest" else "199")
    if rounding != "nearest":
        assert shown <= size_bytes if rounding == "down" else shown >= size_bytes


@given(sizes, sizes, st.sampled_from(["nearest", "down", "up"]))
def test_a_larger_size_never_reads_smaller(one: int, other: int, rounding: Rounding) -> None:
    low, high = (read_back(human_size(value, rounding=rounding), BYTES) for value in sorted((one, other)))
    assert low <= high


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (0, "0 s"),
        (1e-12, "0 s"),
        (2e-5, "20 us"),
        (0.0782, "78.2 ms"),
        (0.9996, "1 s"),
        (0.0009994, "999 us"),
        (1.5, "1.5 s"),
        (59.96, "60 s"),
        (999.7, "1000 s"),
        (1111.3, "1111 s"),
        (10**15, "1000000000000000 s"),
    ],
)
def test_durations_have_three_digits_at_most_and_the_unit_that_fits(duration: float, text: str) -> None:
    assert human_seconds(duration) == text


@given(seconds)
def test_a_duration_is_right_to_its_last_digit_and_below_the_next_unit(duration: float) -> None:
    text = human_seconds(duration)
    number, unit = text.split()
    assert unit == "s" or Decimal(number) < 1000
    assert abs(read_back(text, SECONDS) - Decimal(duration)) <= max(Decimal(duration) / 199, Decimal("5.1e-12"))


@given(seconds, seconds)
def test_a_longer_duration_never_reads_shorter(one: float, other: float) -> None:
    low, high = (read_back(human_seconds(value), SECONDS) for value in sorted((one, other)))
    assert low <= high


@pytest.mark.parametrize("value", [-1, 2**63, True, 1.0, math.nan, math.inf, "1", None])
def test_what_is_no_size_is_refused_by_name(value: Any) -> None:
    with pytest.raises(AllocValueError, match="size_bytes"):
        human_size(value)


@pytest.mark.parametrize("value", [-1e-9, 1e16, True, math.nan, math.inf, -math.inf, "1", None, 10**400])
def test_what_is_no_duration_is_refused_by_name(value: Any) -> None:
    with pytest.raises(AllocValueError, match="seconds"):
        human_seconds(value)


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(AllocValueError, match="nearest"):
        alloc_spec.human_size(5, rounding="half")  # type: ignore[arg-type]
