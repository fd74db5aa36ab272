"""Laws of ``auto`` and of stored plans: more memory never hurts, and what was tampered with is never half-read."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from placement_trees import MIB, machine, movable_bytes, tree_of, trees

from block_discovery import BlockTree
from device_placement import (
    BudgetTooSmallError,
    Hardware,
    PlacementError,
    PlacementPlan,
    Policy,
    plan,
    predict,
    render_svg,
    render_table,
)

POLICIES: list[Policy] = ["stripe", "interleave", "contiguous", "legacy_tail"]
AUTO = "cuda:0,auto;cpu,*"


def with_free(free_bytes: int) -> Hardware:
    hardware = machine(1 << 24, donor_bytes=1 << 30)
    return replace(hardware, devices=(replace(hardware.devices[0], free_bytes=free_bytes), hardware.devices[1]))


def resident(tree: BlockTree, free_bytes: int, policy: Policy, slots: int) -> int | None:
    """What ``auto`` keeps on a device with so much free; None where nothing fits."""
    try:
        result = plan(tree, AUTO, with_free(free_bytes), policy=policy, slots=slots)
    except BudgetTooSmallError:
        return None
    assert result.compute_peak_bytes <= free_bytes
    return result.bytes_on("cuda:0")


@settings(deadline=None, max_examples=40)
@given(
    trees().filter(lambda tree: tree.size_bytes > 0),
    st.sampled_from(POLICIES),
    st.integers(1, 3),
    st.floats(0, 1.2),
    st.floats(1, 2),
)
def test_what_fits_a_small_device_fits_a_larger_one(
    tree: BlockTree, policy: Policy, slots: int, fraction: float, larger: float
) -> None:
    free_bytes = int(tree.size_bytes * fraction)
    if resident(tree, free_bytes, policy, slots) is not None:
        assert resident(tree, int(free_bytes * larger), policy, slots) is not None


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 30), st.integers(1, 6), st.sampled_from(POLICIES), st.integers(1, 3), st.floats(0.3, 1.1))
def test_of_equal_blocks_a_larger_device_keeps_no_less(
    blocks: int, tensors: int, policy: Policy, slots: int, fraction: float
) -> None:
    tree = tree_of([(4096,) * tensors] * blocks)
    free_bytes = int(tree.size_bytes * fraction)
    kept = [resident(tree, free_bytes + step * 4096, policy, slots) for step in range(6)]
    known = [size for size in kept if size is not None]
    assert known == sorted(known)


@settings(deadline=None, max_examples=40)
@given(trees().filter(lambda tree: tree.size_bytes > 0), st.sampled_from(POLICIES), st.integers(1, 3))
def test_a_device_with_room_for_the_model_keeps_all_of_it(tree: BlockTree, policy: Policy, slots: int) -> None:
    assert resident(tree, tree.size_bytes, policy, slots) == tree.size_bytes


@settings(deadline=None, max_examples=15)
@given(
    trees().filter(lambda tree: movable_bytes(tree) > 0), st.sampled_from(POLICIES), st.integers(1, 3), st.floats(0, 1)
)
def test_where_auto_finds_no_room_nothing_is_advised_and_the_least_is_refused_too(
    tree: BlockTree, policy: Policy, slots: int, fraction: float
) -> None:
    free_bytes = int(tree.size_bytes * fraction)
    hardware = with_free(free_bytes)
    if resident(tree, free_bytes, policy, slots) is not None:
        return
    with pytest.raises(BudgetTooSmallError, match="slots") as caught:
        plan(tree, AUTO, hardware, policy=policy, slots=slots)
    assert caught.value.suggestion is None
    with pytest.raises(BudgetTooSmallError):
        plan(tree, "cpu,*", hardware, policy=policy, slots=slots)


@settings(deadline=None, max_examples=25)
@given(trees().filter(lambda tree: tree.size_bytes > 0), st.sampled_from(POLICIES), st.floats(0, 1))
def test_every_plan_has_a_prediction_a_table_and_a_picture(tree: BlockTree, policy: Policy, seconds: float) -> None:
    assume(resident(tree, tree.size_bytes // 2, policy, 2) is not None)
    hardware = with_free(tree.size_bytes // 2)
    result = plan(tree, AUTO, hardware, policy=policy)
    estimate = predict(result, hardware, compute_seconds=seconds)
    assert estimate.seconds is not None
    assert estimate.seconds >= max(seconds * (1 - 1e-9), estimate.transfer_seconds)
    assert estimate.peak_bytes["cuda:0"] == result.compute_peak_bytes
    if estimate.efficiency is not None:
        assert 0 < estimate.efficiency <= 1 + 1e-9
    if estimate.slowdown is not None:
        assert estimate.slowdown >= 1 - 1e-9
    table = render_table(result, hardware, estimate)
    assert table.isascii()
    assert len({len(line) for line in table.splitlines() if line.startswith(("-", "="))}) == 1
    assert render_svg(result).count("<svg") == 1


STORED = json.loads(plan(tree_of([(MIB, MIB)] * 3, rest_sizes=[7]), "cuda:0,3mb;cpu,*", machine(1 << 24)).to_json())
GARBAGE: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=3), st.just([]), st.just({}), st.floats()
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value inside a JSON document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(way for key, item in inside for way in paths(item, (*path, key)))]


@given(st.sampled_from(paths(STORED)[1:]), GARBAGE, st.booleans())
def test_a_plan_that_was_tampered_with_is_read_as_another_or_refused(
    path: tuple[Any, ...], value: Any, remove: bool
) -> None:
    document = json.loads(json.dumps(STORED))
    *way, last = path
    target = document
    for key in way:
        target = target[key]
    if remove:
        del target[last]
    else:
        target[last] = value
    try:
        result = PlacementPlan.from_json(json.dumps(document))
    except PlacementError as error:
        assert str(error)
        return
    assert PlacementPlan.from_json(result.to_json()) == result
    assert all(home.size_bytes >= 0 for unit in result.units for home in unit.homes)


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("units", 1), 3, r"units\[1\]: expected an object, got 3"),
        (("units",), {}, r"units: expected a list"),
        (
            ("units", 0, "homes", 1, "size_bytes"),
            True,
            r"units\[0\]\.homes\[1\]\.size_bytes: expected an integer",
        ),
        (("policy",), "magic", r"policy: expected one of 'stripe'"),
        (("slots",), 2.0, r"slots: expected an integer, got 2\.0"),
        (("units", 0, "colour"), "red", r"units\[0\]\.colour: unknown field"),
        (("version",), 2, r"version: expected 1, got 2"),
        (("format",), "device-placement/estimate", r"\"format\": \"device-placement/plan\""),
    ],
)
def test_an_error_names_the_place(path: tuple[Any, ...], value: Any, where: str) -> None:
    document = json.loads(json.dumps(STORED))
    *way, last = path
    target = document
    for key in way:
        target = target[key]
    target[last] = value
    with pytest.raises(PlacementError, match=where):
        PlacementPlan.from_json(json.dumps(document))
