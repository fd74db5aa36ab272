"""What the README shows is what happens."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from placement_pictures import FOLDER, pictures
from placement_table import CASES, bound_of, seconds_of

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run() -> None:
    failed, tried = doctest.testfile(str(README), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 10
    assert failed == 0


@pytest.mark.parametrize("name", ["plan.svg", "timeline.svg"])
def test_the_pictures_are_those_that_the_package_draws(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pictures()[name] + "\n"
    assert f"docs/{name}" in README.read_text(encoding="utf-8")


def test_the_table_of_policies_is_what_is_predicted() -> None:
    lines = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    rows = [line.strip("|").split("|") for line in lines if line.count("|") == 9][2:]
    shown = [[float(cell) for cell in cells[-5:]] for cells in rows]
    assert len(shown) == len(CASES)
    for case, row in zip(CASES, shown, strict=True):
        predicted = [
            seconds_of(case, "contiguous", slots=1, overlap=False),
            seconds_of(case, "contiguous"),
            seconds_of(case, "interleave"),
            seconds_of(case, "stripe"),
            bound_of(case),
        ]
        assert row == [pytest.approx(value, abs=0.0006) for value in predicted]
