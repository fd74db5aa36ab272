"""Bytes, seconds and coordinates for people: readable at any size, and never further off than the digits shown."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_placement.report._svg import legend, legend_rows, lighter, number, ticks
from device_placement.report._wording import seconds_text, share_text, size_text, unit_for

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
SIZES = {"GB": 1 << 30, "MB": 1 << 20, "KB": 1 << 10}


@given(st.floats(0, 1e7))
def test_a_duration_reads_back_as_what_it_was_to_three_digits(seconds: float) -> None:
    value, unit = seconds_text(seconds).split()
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
    assert seconds_text(seconds) == text


@given(st.integers(1 << 10, 1 << 60))
def test_a_size_reads_back_as_what_it_was_to_two_decimals(size_bytes: int) -> None:
    value, unit = size_text(size_bytes).split()
    assert float(value) * SIZES[unit] == pytest.approx(size_bytes, rel=5.1e-3)
    assert unit == "GB" or float(value) < 1024


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0.00 KB"),
        (512, "0.50 KB"),
        ((1 << 20) - 1, "1.00 MB"),
        ((1 << 30) - 1, "1.00 GB"),
        ((1 << 30) - (1 << 20), "1023.00 MB"),
    ],
)
def test_a_size_just_below_the_next_unit_is_one_of_it(size_bytes: int, text: str) -> None:
    assert size_text(size_bytes) == text


@given(st.integers(0, 1 << 50), st.integers(1, 1 << 50))
def test_a_share_is_a_percentage_of_the_whole(part: int, whole: int) -> None:
    assert float(share_text(part, whole).removesuffix("%")) == pytest.approx(100 * part / whole, abs=0.051, rel=1e-6)


def test_one_unit_serves_a_whole_table() -> None:
    unit = unit_for(3 << 30)
    assert [unit.of(size) for size in (3 << 30, 1 << 29, 0)] == ["3.00", "0.50", "0.00"]


@given(st.floats(-1e6, 1e6))
def test_a_coordinate_is_short_and_near(value: float) -> None:
    text = number(value)
    assert re.fullmatch(r"-?\d+(\.\d{1,2})?", text)
    assert text != "-0"
    assert float(text) == pytest.approx(value, abs=0.00501)


@given(st.floats(1e-9, 1e9), st.integers(2, 12))
def test_ticks_are_evenly_spaced_from_nothing_to_the_largest(largest: float, count: int) -> None:
    marks = ticks(largest, count=count)
    assert marks[0] == 0.0
    assert marks[-1] <= largest * (1 + 1e-9)
    assert count / 3 <= len(marks) <= 2 * count + 1
    steps = [after - before for before, after in pairwise(marks)]
    assert all(step == pytest.approx(steps[0], rel=1e-6) for step in steps)


@pytest.mark.parametrize("colour", ["#000000", "#ffffff", "#3f7ad9"])
def test_a_lighter_colour_is_lighter_and_still_a_colour(colour: str) -> None:
    result = lighter(colour)
    assert re.fullmatch(r"#[0-9a-f]{6}", result)
    channels = [[int(text[at : at + 2], 16) for at in (1, 3, 5)] for text in (colour, result)]
    assert all(before <= after for before, after in zip(*channels, strict=True))


@given(st.lists(st.text("abcdefgh :0123456789", min_size=1, max_size=60), min_size=1, max_size=20))
def test_a_legend_takes_the_rows_that_were_left_for_it_and_stays_on_the_paper(meanings: list[str]) -> None:
    entries = [("#000000", meaning) for meaning in meanings]
    parts = legend(100, entries)
    heights = {float(found[1]) for part in parts if (found := re.search(r'<rect [^>]*y="([\d.]+)"', part))}
    assert len(heights) == legend_rows(entries)
    assert sorted(heights) == [90 + 20 * row for row in range(len(heights))]
