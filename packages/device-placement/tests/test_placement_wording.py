"""Shares, units and coordinates for people: never further off than the digits shown."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_placement.report._svg import legend, legend_rows, lighter, number, ticks
from device_placement.report._units import share_text, unit_for


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
