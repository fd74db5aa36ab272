"""Bytes and seconds for people: right to the last digit that is shown, and never 1024 of a unit."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloc_spec import human_seconds, human_size
from alloc_spec._sizes import GIB, MAX_BYTES

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
SIZES = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 KiB"),
        (1500, "1.46 KiB"),
        (2**20 - 1, "1 MiB"),
        (2**20 - 6, "1023.99 KiB"),
        (2**20, "1 MiB"),
        (GIB - 1, "1 GiB"),
        (100 * 2**20, "100 MiB"),
        (10 * GIB, "10 GiB"),
        (6786048329, "6.32 GiB"),
        (3 * 2**40 // 2, "1.5 TiB"),
    ],
)
def test_sizes_for_people_have_two_decimals_at_most(size_bytes: int, text: str) -> None:
    assert human_size(size_bytes) == text


@given(st.integers(0, MAX_BYTES))
def test_a_size_for_people_is_right_to_its_last_digit(size_bytes: int) -> None:
    number, unit = human_size(size_bytes).split()
    unit_bytes = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": GIB, "TiB": 2**40}[unit]
    assert abs(Decimal(number) * unit_bytes - size_bytes) <= Decimal("0.00501") * unit_bytes
    assert unit == "TiB" or Decimal(number) < 1024


@given(st.tuples(st.integers(0, MAX_BYTES), st.integers(0, MAX_BYTES)).map(sorted))
def test_a_larger_size_never_reads_as_a_smaller_one(sizes: list[int]) -> None:
    low, high = ((float(number), SIZES[unit]) for number, unit in (human_size(size).split() for size in sizes))
    assert low[0] * low[1] <= high[0] * high[1]


@given(st.floats(0, 1e7))
def test_a_duration_reads_back_as_what_it_was_to_three_digits(seconds: float) -> None:
    value, unit = human_seconds(seconds).split()
    assert re.fullmatch(r"\d+(\.\d+)?", value), "a plain number, no exponent"
    assert float(value) * SECONDS[unit] == pytest.approx(seconds, rel=5e-3, abs=5e-13)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (999.6e-6, "1 ms"),
        (999.6e-9, "1 us"),
        (1.5e-9, "1.5 ns"),
        (999.6, "1000 s"),
        (1234.5, "1234 s"),
        (86400.0, "86400 s"),
    ],
)
def test_a_duration_never_has_an_exponent(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text
