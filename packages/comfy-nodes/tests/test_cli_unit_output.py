"""Laws of what is printed: columns that end together, numbers that mean what they stand for, warnings apart."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from block_discovery import discover_names
from comfy_nodes.cli._output import (
    contents,
    dots,
    heading,
    percent_error,
    print_findings,
    table,
    warn,
)
from device_placement import Finding

cells = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=12)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[str], list[list[str]], int]:
    columns = draw(st.integers(1, 5))
    row = st.lists(cells, min_size=columns, max_size=columns)
    return draw(row), draw(st.lists(row, max_size=5)), draw(st.integers(0, columns))


@given(tables())
def test_columns_begin_or_end_together(made: tuple[list[str], list[list[str]], int]) -> None:
    titles, rows, left = made
    head, rule, *lines = table(titles, rows, left=left).splitlines()
    assert len(lines) == len(rows)
    spans = [match.span() for match in re.finditer("-+", rule)]
    assert len(spans) == len(titles)
    for line, row in zip([head, *lines], [titles, *rows], strict=True):
        for column, ((start, end), cell) in enumerate(zip(spans, row, strict=True)):
            padded = line.ljust(end)[start:end]
            assert padded == (cell.ljust(end - start) if column < left else cell.rjust(end - start))


@given(tables())
def test_no_line_ends_in_blanks_and_no_column_is_wider_than_it_must_be(
    made: tuple[list[str], list[list[str]], int],
) -> None:
    titles, rows, left = made
    printed = table(titles, rows, left=left)
    assert all(line == line.rstrip() for line in printed.splitlines())
    widest = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    assert max(map(len, printed.splitlines())) == sum(widest) + 2 * (len(widest) - 1)


def test_a_table_without_rows_has_its_titles() -> None:
    assert table(["device", "free"], []) == "device  free\n------  ----"


def test_an_empty_cell_keeps_its_column() -> None:
    lines = table(["a", "b", "c"], [["x", "", "1"]]).splitlines()
    assert lines[2] == "x     1"


@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_an_error_has_the_sign_of_the_difference(predicted: float, measured: float) -> None:
    text = percent_error(predicted, measured)
    assert text[0] == ("-" if predicted < measured else "+")
    assert float(text.removesuffix(" %")) == pytest.approx(100 * (predicted / measured - 1), abs=0.051)


def test_contents_count_what_there_is_and_nothing_else() -> None:
    shapes = {f"blocks.{block}.{part}.weight": ((64, 64), "float32") for block in range(3) for part in "ab"}
    assert contents(discover_names(shapes)) == "3 blocks, 6 tensors, 96 KiB"
    one = contents(discover_names({**shapes, "head.weight": ((4096, 64), "float32")}))
    assert one.startswith("3 blocks, 1 single layer, 7 tensors, ")
    assert contents(discover_names({"norm.weight": ((4,), "float32")})) == "1 single layer, 1 tensor, 16 bytes"


def test_findings_stand_under_a_heading_with_their_remedies(capsys: pytest.CaptureFixture[str]) -> None:
    findings = [
        Finding(level="ok", subject="torch", message="there"),
        Finding(level="problem", subject="driver", message="too old", remedy="update it"),
    ]
    print_findings("Devices", findings)
    assert capsys.readouterr().out == (
        f"{heading('Devices')}\nok       torch: there\nproblem  driver: too old\n         -> update it\n"
    )


def test_warnings_do_not_disturb_what_is_piped(capsys: pytest.CaptureFixture[str]) -> None:
    warn("a sentence")
    assert capsys.readouterr() == ("", "warning: a sentence\n")


def test_dots_are_shown_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    dot = dots("steps")
    assert capsys.readouterr().out == "steps "
    dot(1)
    assert capsys.readouterr().out == "."
    dot(2)
    assert capsys.readouterr().out == "."
