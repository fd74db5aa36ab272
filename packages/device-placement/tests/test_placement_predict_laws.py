"""Laws of the predictor: bounds, monotonicity, and agreement with the recurrence written down a second time."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_trees import GIB, MIB, machine

from device_placement import Estimate, Hardware, PlacementPlan, TensorHome, UnitPlacement, predict
from device_placement.planning._recurrence import Call, Copy, steady_pass

DONORS = ("cpu", "cuda:1")
CLOSE = 1 + 1e-6


def unit_of(index: int, streamed: dict[str, int], resident: int) -> UnitPlacement:
    homes = [TensorHome(name=f"{index}.{name}", size_bytes=size, device=name) for name, size in streamed.items()]
    homes.append(TensorHome(name=f"{index}.resident", size_bytes=resident, device="cuda:0"))
    return UnitPlacement(path=f"blocks.{index}", class_name="Block", kind="block", homes=tuple(homes))


@st.composite
def placed(draw: st.DrawFn) -> tuple[PlacementPlan, dict[str, float]]:
    """A plan of 1 to 10 units that stream from no, one or two donors, and the seconds of each unit."""
    units = []
    for index in range(draw(st.integers(1, 10))):
        donors = draw(st.sampled_from([(), ("cpu",), ("cuda:1",), DONORS]))
        streamed = {donor: draw(st.integers(1, 400)) * MIB for donor in donors}
        units.append(unit_of(index, streamed, draw(st.integers(0, 100)) * MIB))
    result = PlacementPlan(
        compute="cuda:0", donors=DONORS, policy="stripe", slots=draw(st.integers(1, 4)), units=tuple(units)
    )
    return result, {unit.path: draw(st.integers(0, 50)) / 1000 for unit in units}


def hardware_of(gb_per_second: float = 10.0, *, shared: bool = True) -> Hardware:
    ingress = ("host", "host" if shared else "nvlink")
    return machine(64 * GIB, gb_per_second=gb_per_second, donors=DONORS, ingress=ingress)


def known(seconds: float | None) -> float:
    assert seconds is not None
    return seconds


def link_seconds(plan: PlacementPlan, hardware: Hardware) -> float:
    """All copies of a pass, one after another."""
    copies = [
        hardware.link(donor, "cuda:0").copy_seconds(sum(home.size_bytes for home in homes))
        for unit in plan.units
        for donor, homes in unit.streamed("cuda:0").items()
    ]
    return math.fsum(copies)


@given(placed(), st.booleans())
def test_no_overlap_beats_the_compute_time_or_the_busiest_ingress(
    given_plan: tuple[PlacementPlan, dict[str, float]], shared: bool
) -> None:
    plan, seconds = given_plan
    estimate = predict(plan, hardware_of(shared=shared), unit_seconds=seconds)
    assert known(estimate.seconds) >= max(known(estimate.compute_seconds), estimate.transfer_seconds)


@given(placed(), st.booleans())
def test_overlap_is_never_slower_than_taking_turns(
    given_plan: tuple[PlacementPlan, dict[str, float]], shared: bool
) -> None:
    plan, seconds = given_plan
    hardware = hardware_of(shared=shared)
    serial = sum(seconds.values()) + link_seconds(plan, hardware)
    assert known(predict(plan, hardware, unit_seconds=seconds).seconds) <= serial * CLOSE


@given(placed(), st.booleans())
def test_without_overlap_a_pass_is_compute_plus_copies(
    given_plan: tuple[PlacementPlan, dict[str, float]], shared: bool
) -> None:
    plan, seconds = given_plan
    hardware = hardware_of(shared=shared)
    estimate = predict(plan, hardware, unit_seconds=seconds, overlap=False)
    assert estimate.seconds == pytest.approx(sum(seconds.values()) + link_seconds(plan, hardware), rel=1e-9)


@given(placed(), st.floats(1.0, 50.0))
def test_a_faster_link_is_never_slower(given_plan: tuple[PlacementPlan, dict[str, float]], factor: float) -> None:
    plan, seconds = given_plan
    slow = known(predict(plan, hardware_of(2.0), unit_seconds=seconds).seconds)
    assert known(predict(plan, hardware_of(2.0 * factor), unit_seconds=seconds).seconds) <= slow * CLOSE


@given(placed())
def test_another_slot_is_never_slower(given_plan: tuple[PlacementPlan, dict[str, float]]) -> None:
    plan, seconds = given_plan
    fewer = known(predict(plan, hardware_of(), unit_seconds=seconds).seconds)
    more = replace(plan, slots=plan.slots + 1)
    assert known(predict(more, hardware_of(), unit_seconds=seconds).seconds) <= fewer * CLOSE


@given(placed())
def test_an_ingress_of_its_own_is_never_slower_than_a_shared_one(
    given_plan: tuple[PlacementPlan, dict[str, float]],
) -> None:
    plan, seconds = given_plan
    shared = known(predict(plan, hardware_of(shared=True), unit_seconds=seconds).seconds)
    assert known(predict(plan, hardware_of(shared=False), unit_seconds=seconds).seconds) <= shared * CLOSE


@given(placed(), st.sampled_from([0.25, 2.0, 1024.0]))
def test_a_machine_that_is_slower_in_everything_is_slower_by_that_factor(
    given_plan: tuple[PlacementPlan, dict[str, float]], factor: float
) -> None:
    plan, seconds = given_plan
    hardware = hardware_of()
    slower = replace(
        hardware,
        links=tuple(
            replace(link, gb_per_second=link.gb_per_second / factor, latency_seconds=link.latency_seconds * factor)
            for link in hardware.links
        ),
    )
    once = known(predict(plan, hardware, unit_seconds=seconds).seconds)
    stretched = {path: own * factor for path, own in seconds.items()}
    assert predict(plan, slower, unit_seconds=stretched).seconds == pytest.approx(once * factor, rel=1e-6)


@settings(deadline=None)
@given(placed(), st.booleans())
def test_the_steady_pass_is_the_slope_of_the_recurrence_written_down_plainly(
    given_plan: tuple[PlacementPlan, dict[str, float]], shared: bool
) -> None:
    """All copies and forwards of 400 passes in two flat lists, as on the design page, and the slope of their ends."""
    plan, seconds = given_plan
    hardware = hardware_of(shared=shared)
    passes = 400
    ingress_free = {"host": 0.0, "nvlink": 0.0}
    ends: list[float] = []  # of streamed calls
    compute_end = 0.0
    marks = []
    streamed = sum(bool(unit.streamed("cuda:0")) for unit in plan.units)
    for _ in range(passes):
        for unit in plan.units:
            arrived = 0.0
            # What fits into the slots stays there.
            for donor, homes in unit.streamed("cuda:0").items() if streamed > plan.slots else ():
                link = hardware.link(donor, "cuda:0")
                slot_free = ends[len(ends) - plan.slots] if len(ends) >= plan.slots else 0.0
                start = max(ingress_free[link.ingress], slot_free)
                ingress_free[link.ingress] = start + link.copy_seconds(sum(home.size_bytes for home in homes))
                arrived = max(arrived, ingress_free[link.ingress])
            compute_end = max(compute_end, arrived) + seconds[unit.path]
            if unit.streamed("cuda:0"):
                ends.append(compute_end)
        marks.append(compute_end)
    slope = (marks[-1] - marks[-1 - 120]) / 120  # 120 is a multiple of every cycle length up to 6
    found = known(predict(plan, hardware, unit_seconds=seconds).seconds)
    assert found == pytest.approx(slope, rel=1e-4, abs=1e-9)


@given(placed(), st.booleans())
@settings(max_examples=60)
def test_the_timeline_is_a_possible_one(given_plan: tuple[PlacementPlan, dict[str, float]], shared: bool) -> None:
    """Inside the pass, nothing twice at a time on the compute device or on an ingress, no forward before its bytes."""
    plan, seconds = given_plan
    hardware = hardware_of(shared=shared)
    estimate = predict(plan, hardware, unit_seconds=seconds)
    total = known(estimate.seconds)
    slack = total * 1e-9
    assert all(-slack <= span.start_seconds <= span.end_seconds <= total + slack for span in estimate.spans)
    lanes: dict[str, list[tuple[float, float]]] = {}
    for span in estimate.spans:
        lane = span.device if span.kind == "compute" else "ingress " + hardware.link(span.device, "cuda:0").ingress
        lanes.setdefault(lane, []).append((span.start_seconds, span.end_seconds))
    for spans in lanes.values():
        ordered = sorted(spans)
        assert all(before[1] <= after[0] + slack for before, after in pairwise(ordered))


@given(placed())
def test_an_estimate_survives_json(given_plan: tuple[PlacementPlan, dict[str, float]]) -> None:
    plan, seconds = given_plan
    estimate = predict(plan, hardware_of(), unit_seconds=seconds)
    assert Estimate.from_json(estimate.to_json()) == estimate


def test_a_pass_that_repeats_only_every_second_time_is_averaged() -> None:
    """Three streamed calls on two slots: each slot serves another unit in the following pass."""
    calls = [
        Call(unit=str(i), seconds=1.0, copies=(Copy(donor="cpu", ingress="host", seconds=s),))
        for i, s in enumerate((5, 1, 1))
    ]
    assert steady_pass(calls, slots=2, overlap=True).seconds == pytest.approx(7.0)


def test_a_link_slower_by_a_thousandth_is_the_bound_however_many_slots_there_are() -> None:
    copies = (Copy(donor="cpu", ingress="host", seconds=0.010_01),)
    calls = [Call(unit=str(index), seconds=0.010, copies=copies) for index in range(10)]
    assert steady_pass(calls, slots=40, overlap=True).seconds == pytest.approx(0.1001, rel=1e-9)


def test_passes_that_do_not_settle_are_averaged_over_the_second_half() -> None:
    """The link gains a nanosecond a pass on the compute device, and would need millions of passes to fill its slots."""
    copies = (Copy(donor="cpu", ingress="host", seconds=0.009_999_999_9),)
    calls = [Call(unit=str(index), seconds=0.010, copies=copies) for index in range(10)]
    assert steady_pass(calls, slots=40, overlap=True).seconds == pytest.approx(0.1, rel=1e-9)
