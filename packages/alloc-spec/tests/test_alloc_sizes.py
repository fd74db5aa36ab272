"""Sizes: exact reading and shortest writing."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloc_spec._sizes import (
    GIB,
    MAX_BYTES,
    MAX_NUMBER_CHARACTERS,
    UNITS,
    read_size,
    write_number,
    write_size,
)

sizes = st.one_of(
    st.integers(0, MAX_BYTES),
    st.integers(0, 10**6),
    st.builds(lambda count, unit: count * UNITS[unit] // 10, st.integers(0, 9999), st.sampled_from(sorted(UNITS))),
)
numbers = st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,12})?|\.[0-9]{1,12}", fullmatch=True)


@given(numbers, st.sampled_from(sorted(UNITS)))
def test_reading_is_exact_and_rounds_up_to_a_whole_byte(number: str, unit: str) -> None:
    exact = Fraction(number) * UNITS[unit]
    size_bytes = read_size(number, UNITS[unit])
    assert isinstance(size_bytes, int)
    assert exact <= size_bytes < exact + 1


@given(sizes, st.sampled_from(sorted(UNITS)))
def test_what_is_written_in_any_unit_reads_back(size_bytes: int, unit: str) -> None:
    assert read_size(write_number(size_bytes, UNITS[unit]), UNITS[unit]) == size_bytes


@given(sizes)
def test_a_written_size_reads_back_and_is_never_longer_than_in_bytes(size_bytes: int) -> None:
    text = write_size(size_bytes)
    number = text.rstrip("tgmkb")
    assert read_size(number, UNITS[text[len(number) :]]) == size_bytes
    assert len(text) <= len(f"{size_bytes}b")
    assert len(number) <= MAX_NUMBER_CHARACTERS


@given(sizes)
def test_gigabytes_are_written_within_the_longest_number(size_bytes: int) -> None:
    assert len(write_number(size_bytes, GIB)) <= MAX_NUMBER_CHARACTERS


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0b"),
        (1, "1b"),
        (1023, "1023b"),
        (1024, "1kb"),
        (1536, "1.5kb"),
        (2**20, "1mb"),
        (500 * 2**20, "500mb"),
        (512 * 2**20, "512mb"),
        (5 * GIB // 2, "2.5gb"),
        (read_size("0.3", GIB), "307.2mb"),
        (read_size("4.1", GIB), "4.1gb"),
        (5 * GIB // 2 + 1, "2684354561b"),
        (4 * 2**40, "4tb"),
    ],
)
def test_sizes_are_written_in_the_unit_that_makes_them_shortest(size_bytes: int, text: str) -> None:
    assert write_size(size_bytes) == text


def test_the_units_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        UNITS["gb"] = 10**9  # type: ignore[index]
