"""The log tables: numbers that agree with the plan, in columns that stand under each other."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from placement_trees import GIB, flux_tree, machine, rest, tree_of, trees, unit

from block_discovery import BlockTree
from device_placement import PlacementPlan, plan, predict, render_table
from device_placement.report._units import round_seconds, unit_for

HARDWARE = machine(8 * GIB, donors=("cuda:1", "cpu"))
BLOCKS = [unit(f"double_blocks.{i}", (GIB // 8,) * 4) for i in range(4)]
SINGLES = [unit(f"single_blocks.{i}", (GIB // 4,) * 2) for i in range(8)]
TREE = BlockTree(units=(*BLOCKS, *SINGLES, rest([GIB // 8])))
PLAN = plan(TREE, "cuda:0,auto;cuda:1,1gb;cpu,2gb", HARDWARE)


def rows_of(table: str, title: str) -> dict[str, list[str]]:
    """Rows under a title by their first cell; cells are two blanks apart."""
    lines = table.splitlines()
    start = next(index for index, line in enumerate(lines) if line.strip("= ") == title)
    rows = {}
    for line in lines[start + 1 :]:
        if line.startswith("="):
            break
        if not line.startswith("-"):
            cells = re.split(r" {2,}", line.strip())
            rows[cells[0]] = cells[1:]
    return rows


def test_device_allocation_says_who_holds_how_much_of_what_there_is() -> None:
    rows = rows_of(render_table(PLAN, HARDWARE), "Device allocation")
    assert rows["device"] == ["role", "total GiB", "free GiB", "model GiB", "share", "2 slots GiB", "together GiB"]
    assert rows["cuda:0"][:4] == ["computes", "8.00", "8.00", "3.12"]
    assert rows["cuda:1"] == ["donor", "128.00", "128.00", "1.00", "16.3%", "1.00"]
    assert rows["cpu"][3] == "2.00"


def test_without_hardware_only_the_plan_is_shown() -> None:
    rows = rows_of(render_table(PLAN), "Device allocation")
    assert rows["device"] == ["role", "model GiB", "share", "2 slots GiB", "together GiB"]


def test_layer_distribution_takes_equal_siblings_together() -> None:
    rows = rows_of(render_table(PLAN), "Layer distribution")
    assert rows["double_blocks.* Block"][:3] == ["4", "16", "2.00"]
    assert rows["single_blocks.* Block"][:3] == ["8", "16", "4.00"]
    assert rows["rest (always resident)"] == ["1", "1", "0.12", "2.0%", "0.00"]


def test_final_assignment_counts_whole_units_and_parts() -> None:
    tree = tree_of([(GIB,)] * 4, rest_sizes=[GIB])
    result = plan(tree, "cuda:0,3gb;cpu,*", machine(16 * GIB), policy="contiguous")
    rows = rows_of(render_table(result), "Final assignment")
    assert rows["cuda:0"] == ["3", "0", "3", "3.00", "60.0%"]
    assert rows["cpu"] == ["2", "0", "2", "2.00", "40.0%"]


def test_the_prediction_is_called_one_and_says_what_binds() -> None:
    table = render_table(PLAN, HARDWARE, predict(PLAN, HARDWARE, compute_seconds=0.5))
    assert "predicted: 500 ms a pass (1.00 x all resident), bound by the compute; 3.00 GiB sent a pass" in table
    assert "the compute time is not known" in render_table(PLAN, HARDWARE, predict(PLAN, HARDWARE))
    assert "predicted" not in render_table(PLAN, HARDWARE)


def test_an_unknown_compute_time_gives_the_slowdown_of_several_forwards() -> None:
    estimate = predict(PLAN, HARDWARE)
    (line,) = [line for line in render_table(PLAN, HARDWARE, estimate).splitlines() if "slowdown" in line]
    shown = dict(re.findall(r"(\d+ m?s)(?: with all resident)?: (\d+\.\d\d) x", line))
    seconds = {"20 ms": 0.02, "50 ms": 0.05, "100 ms": 0.1, "200 ms": 0.2}
    assert list(shown) == list(seconds)
    for text, slowdown in shown.items():
        assert slowdown == f"{predict(PLAN, HARDWARE, compute_seconds=seconds[text]).slowdown:.2f}"
    assert float(shown["20 ms"]) > 4
    assert shown["200 ms"] == "1.00"


def test_what_is_known_needs_no_examples_and_what_is_not_sent_slows_nothing() -> None:
    assert "slowdown" not in render_table(PLAN, HARDWARE, predict(PLAN, HARDWARE, compute_seconds=0.5))
    assert "slowdown" not in render_table(PLAN, None, predict(PLAN, HARDWARE))
    resident = plan(TREE, "cuda:0,*", HARDWARE)
    shown = render_table(resident, HARDWARE, predict(resident, HARDWARE)).splitlines()
    assert shown[-1] == "predicted: no slowdown, since a steady pass sends nothing"


@given(st.floats(min_value=1e-9, max_value=1e6))
def test_examples_lie_on_both_sides_and_read_as_round_numbers(around: float) -> None:
    seconds = round_seconds(around)
    assert len(seconds) == 4 and seconds == sorted(set(seconds))
    assert seconds[0] <= around / 4 and around < seconds[-1] <= 2.5 * around
    assert all(f"{each:e}"[0] in "125" and float(f"{each:.0e}") == each for each in seconds)


def test_warnings_stand_below() -> None:
    result = plan(TREE, "cpu,*", HARDWARE)
    assert render_table(result).splitlines()[-1].startswith("warning: cuda:0 was given no bytes")


def test_a_small_model_is_shown_in_smaller_units() -> None:
    small = plan(tree_of([(1 << 20,) * 4] * 2), "cpu,4mb;cuda:0,*", HARDWARE)
    assert "model MiB" in render_table(small)
    tiny = plan(tree_of([(512,) * 4] * 2), "cpu,1kb;cuda:0,*", HARDWARE)
    assert "model KiB" in render_table(tiny)


def test_siblings_inside_numbered_parents_are_one_layer() -> None:
    units = [unit(f"stages.{i}.blocks.{j}", (GIB,)) for i in range(2) for j in range(3)]
    rows = rows_of(render_table(plan(BlockTree(units=tuple(units)), "cuda:0,*", HARDWARE)), "Layer distribution")
    assert rows["stages.*.blocks.* Block"][0] == "6"


@given(trees())
def test_every_column_of_every_table_ends_at_one_place(tree: BlockTree) -> None:
    assume(tree.size_bytes)
    lines = render_table(plan(tree, "cuda:0,*", HARDWARE)).splitlines()
    heads = [index + 1 for index, line in enumerate(lines) if line.startswith("==")]
    assert len(heads) == 3
    for head in heads:
        for line in lines[head + 2 :]:
            if line.startswith(("=", "-")):
                break
            assert len(line) <= len(lines[head])
            assert all(line[end - 1] != " " for end in column_ends(lines[head]) if end <= len(line))


def column_ends(head: str) -> list[int]:
    """Where the numbers of a table end: at the ends of their heads."""
    return [match.end() for match in re.finditer(r"\S+(?: \S+)*", head)][1:-2]


@given(trees())
def test_tables_are_plain_ascii_so_that_every_console_shows_them(tree: BlockTree) -> None:
    assume(tree.size_bytes)
    assert render_table(plan(tree, "cuda:0,*", HARDWARE)).isascii()


def test_an_empty_plan_is_a_table_too() -> None:
    empty = PlacementPlan(compute="cuda:0", donors=(), policy="stripe", slots=2, units=())
    assert rows_of(render_table(empty), "Device allocation")["cuda:0"][:3] == ["computes", "0.00", "-"]


def test_a_real_model_fits_a_terminal() -> None:
    hardware = machine(8 * GIB, donors=("cuda:1", "cpu"))
    result = plan(flux_tree(), "cuda:0,auto;cuda:1,1.5gb;cpu,*", hardware)
    lines = render_table(result, hardware).splitlines()
    assert max(len(line) for line in lines) <= 100


@given(st.integers(0, 1 << 50))
def test_sizes_are_shown_in_a_unit_that_keeps_them_short(size: int) -> None:
    shown = unit_for(size)
    assert float(shown.of(size)) == pytest.approx(size / (1 << shown.exponent), abs=0.005001)
    assert size < 1024 or float(shown.of(size)) >= 1
