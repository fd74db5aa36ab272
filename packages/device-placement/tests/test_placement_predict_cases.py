"""The predictor on cases that can be worked out by hand, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from placement_trees import GIB, machine, rest, tree_of, unit

from alloc_spec import Budget
from block_discovery import BlockTree
from device_placement import (
    Hardware,
    InvalidPlanError,
    PlacementPlan,
    Policy,
    UnknownDeviceError,
    UnknownLinkError,
    plan,
    predict,
)

MB = 1_024_000  # a multiple of the alignment, so that bytes over bandwidth come out exactly
HARDWARE = machine(24 * GIB, gb_per_second=1.024, latency_seconds=0)  # 1 MB a millisecond


def half_streamed(blocks: int = 8, *, policy: Policy = "interleave", slots: int = 2) -> PlacementPlan:
    """Blocks of 10 MB (10 ms on the link), every second one streamed."""
    tree = tree_of([(10 * MB,)] * blocks)
    half = tree.size_bytes // 2
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": half, "cpu": half})
    return plan(tree, budget, HARDWARE, policy=policy, slots=slots)


def test_copies_hide_behind_compute() -> None:
    estimate = predict(half_streamed(), HARDWARE, compute_seconds=0.080)
    assert estimate.seconds == pytest.approx(0.080)
    assert estimate.bound == "compute"
    assert estimate.slowdown == pytest.approx(1.0)
    assert estimate.efficiency == pytest.approx(1.0)


def test_a_slow_link_is_the_bound() -> None:
    estimate = predict(half_streamed(), HARDWARE, compute_seconds=0.008)
    assert estimate.transfer_seconds == pytest.approx(0.040)
    assert estimate.seconds == pytest.approx(0.040)
    assert estimate.bound == "link"
    assert estimate.slowdown == pytest.approx(5.0)


def test_too_few_slots_are_the_bound_when_neither_link_nor_compute_is() -> None:
    tree = tree_of([(10 * MB,)] * 4)
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 0, "cpu": tree.size_bytes})
    estimate = predict(plan(tree, budget, HARDWARE, slots=1), HARDWARE, compute_seconds=0.040)
    assert estimate.seconds == pytest.approx(0.080)
    assert estimate.bound == "buffer"
    assert estimate.efficiency == pytest.approx(0.5)


def test_a_resident_model_costs_nothing_extra() -> None:
    tree = tree_of([(10 * MB,)] * 4)
    estimate = predict(plan(tree, "cuda:0,*", HARDWARE), HARDWARE, compute_seconds=0.1)
    assert estimate.seconds == pytest.approx(0.1)
    assert (estimate.transfer_seconds, estimate.bound) == (0.0, "compute")


def test_latency_is_paid_once_a_copy() -> None:
    slow = machine(24 * GIB, gb_per_second=1.024, latency_seconds=0.005)
    assert predict(half_streamed(), slow).transfer_seconds == pytest.approx(4 * 0.015)


def test_without_a_compute_time_only_transfers_and_bytes_are_known() -> None:
    estimate = predict(half_streamed(), HARDWARE)
    assert (estimate.seconds, estimate.compute_seconds, estimate.slowdown) == (None, None, None)
    assert (estimate.bound, estimate.efficiency, estimate.spans) == (None, None, ())
    assert estimate.transfer_seconds == pytest.approx(0.040)


def test_peak_bytes_count_residents_and_slots_and_donor_buffers() -> None:
    estimate = predict(half_streamed(), HARDWARE)
    assert estimate.peak_bytes == {"cuda:0": 40 * MB + 2 * 10 * MB, "cpu": 40 * MB}


def test_donors_behind_one_ingress_take_turns_and_others_do_not() -> None:
    tree = tree_of([(5 * MB, 5 * MB)] * 4)
    for ingress, expected in ((("host", "host"), 0.040), (("host", "nvlink"), 0.020)):
        hardware = machine(24 * GIB, gb_per_second=1.024, latency_seconds=0, donors=("cpu", "cuda:1"), ingress=ingress)
        base = plan(tree, "cuda:0,0gb;cuda:1,50%;cpu,50%", hardware)
        split = replace(
            base,
            units=tuple(
                replace(u, homes=(replace(u.homes[0], device="cpu"), replace(u.homes[1], device="cuda:1")))
                for u in base.units
            ),
        )
        assert predict(split, hardware, compute_seconds=0).seconds == pytest.approx(expected)


def test_a_unit_called_twice_is_copied_twice() -> None:
    result = half_streamed()
    paths = [unit.path for unit in result.units]
    estimate = predict(result, HARDWARE, compute_seconds=0.001, call_order=paths + paths)
    assert estimate.transfer_seconds == pytest.approx(0.080)


def test_no_more_streamed_units_than_slots_stay_where_they_are() -> None:
    result = half_streamed(4)
    estimate = predict(result, HARDWARE, compute_seconds=0.008)
    assert estimate.transfer_seconds == 0
    assert estimate.bound == "compute"
    assert estimate.seconds == pytest.approx(0.008)
    assert all(span.kind == "compute" for span in estimate.spans)
    fetched_in_turn = predict(result, HARDWARE, compute_seconds=0.008, overlap=False)
    assert fetched_in_turn.transfer_seconds == pytest.approx(0.020)
    assert fetched_in_turn.seconds == pytest.approx(0.028)


def test_a_unit_called_again_at_once_is_copied_once() -> None:
    result = half_streamed()
    twice = [unit.path for unit in result.units for _ in range(2)]
    assert predict(result, HARDWARE, call_order=twice).transfer_seconds == pytest.approx(0.040)


def test_a_unit_never_called_is_never_copied() -> None:
    result = half_streamed()
    paths = [unit.path for unit in result.units if not unit.streamed_bytes("cuda:0")]
    assert predict(result, HARDWARE, compute_seconds=0.01, call_order=paths).transfer_seconds == 0


def test_compute_seconds_are_divided_as_the_planner_assumes() -> None:
    table = unit("embed", (10 * MB,), kind="leaf", is_embedding=True)
    head = unit("head", (MB,), kind="leaf")
    tree = BlockTree(units=(table, unit("small", (MB,)), unit("large", (4 * MB,)), head))
    estimate = predict(plan(tree, "cuda:0,*", HARDWARE), HARDWARE, compute_seconds=0.17)
    spent = {span.unit: span.end_seconds - span.start_seconds for span in estimate.spans}
    assert spent["small"] == pytest.approx(0.08) and spent["large"] == pytest.approx(0.08)
    assert spent["head"] == pytest.approx(0.01)
    assert spent.get("embed", 0.0) == 0.0


def test_unit_seconds_give_the_shape_and_compute_seconds_the_total() -> None:
    result = half_streamed()
    shape = {unit.path: 1.0 + index for index, unit in enumerate(result.units)}
    own = predict(result, HARDWARE, unit_seconds=shape)
    scaled = predict(result, HARDWARE, unit_seconds=shape, compute_seconds=1.0)
    assert own.compute_seconds == pytest.approx(36.0)
    assert scaled.compute_seconds == pytest.approx(1.0)


def test_a_model_of_lookup_tables_alone_shares_the_time_equally() -> None:
    table = unit("embed", (10 * MB,), kind="leaf", is_embedding=True)
    result = plan(BlockTree(units=(table,)), "cuda:0,*", HARDWARE)
    assert predict(result, HARDWARE, compute_seconds=0.5).seconds == pytest.approx(0.5)


def test_the_rest_may_have_no_seconds_of_its_own() -> None:
    tree = tree_of([(MB,)] * 2, rest_sizes=[MB])
    result = plan(tree, "cuda:0,*", HARDWARE)
    seconds = {"blocks.0": 0.1, "blocks.1": 0.2}
    assert predict(result, HARDWARE, unit_seconds=seconds).seconds == pytest.approx(0.3)
    assert predict(result, HARDWARE, unit_seconds=seconds | {"": 0.1}).seconds == pytest.approx(0.4)


def test_an_empty_model_takes_no_time() -> None:
    empty = PlacementPlan(compute="cuda:0", donors=(), policy="stripe", slots=2, units=())
    assert predict(empty, HARDWARE, compute_seconds=0.0).seconds == 0.0
    rest_only = plan(BlockTree(units=(rest([MB]),)), "cuda:0,*", HARDWARE)
    assert predict(rest_only, HARDWARE, compute_seconds=0.1).seconds == pytest.approx(0.1)


def test_a_link_that_is_not_described_is_an_error_that_says_how_to_get_it() -> None:
    unlinked = replace(HARDWARE, links=())
    with pytest.raises(UnknownLinkError, match=r"probe\(compute='cuda:0', donors=\['cpu'\]\)") as caught:
        predict(half_streamed(), unlinked)
    assert (caught.value.source, caught.value.target) == ("cpu", "cuda:0")


def test_a_donor_that_is_not_described_is_an_error() -> None:
    smaller = Hardware(compute="cuda:0", devices=HARDWARE.devices[:1])
    with pytest.raises(UnknownDeviceError, match="'cpu'"):
        predict(half_streamed(), smaller)


def test_a_plan_for_another_compute_device_is_an_error() -> None:
    with pytest.raises(InvalidPlanError, match="'cuda:0'"):
        predict(half_streamed(), replace(HARDWARE, compute="cpu", links=()))


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_impossible_times_are_errors(seconds: float) -> None:
    with pytest.raises(InvalidPlanError, match="finite seconds"):
        predict(half_streamed(), HARDWARE, compute_seconds=seconds)
    with pytest.raises(InvalidPlanError, match=r"unit_seconds\['blocks\.0'\]"):
        predict(half_streamed(), HARDWARE, unit_seconds={f"blocks.{index}": seconds for index in range(8)})


def test_a_missing_or_unknown_unit_is_an_error() -> None:
    with pytest.raises(InvalidPlanError, match=r"blocks\.1"):
        predict(half_streamed(), HARDWARE, unit_seconds={"blocks.0": 1.0})
    with pytest.raises(InvalidPlanError, match="nowhere"):
        predict(half_streamed(), HARDWARE, compute_seconds=1.0, call_order=["nowhere"])
