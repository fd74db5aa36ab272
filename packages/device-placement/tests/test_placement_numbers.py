"""Numbers that are none of a machine or plan are refused by name, wherever they enter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_models import emulated, plan_for, stack

from block_discovery import discover
from device_placement import (
    Device,
    HandleStateError,
    Hardware,
    InvalidHardwareError,
    InvalidPlanError,
    Link,
    PlacementError,
    TensorHome,
    place,
    plan,
    predict,
)

MIB = 1 << 20
HARDWARE = Hardware(
    compute="card:0",
    devices=tuple(Device(name=name, total_bytes=8 * MIB, free_bytes=8 * MIB) for name in ("card:0", "cpu")),
    links=(Link(source="cpu", target="card:0", gb_per_second=5.0),),
)
TREE = discover(stack(4))
PLAN = plan(TREE, "card:0,30%;cpu,*", HARDWARE)

NEITHER: list[Any] = [float("nan"), float("inf"), -1, 10**400, True, "5", None, [], -0.5]
NO_COUNT: list[Any] = [*NEITHER, 0.0, 2.0, 10**30]

COUNTS: dict[str, Callable[[Any], object]] = {
    "total_bytes": lambda value: Device(name="c", total_bytes=value, free_bytes=0),
    "free_bytes": lambda value: Device(name="c", total_bytes=10, free_bytes=value),
    "reserve_bytes": lambda value: Device(name="c", total_bytes=10, free_bytes=0, reserve_bytes=value),
    "bytes; give": lambda value: TensorHome(name="w", size_bytes=value, device="c"),
    "slots": lambda value: plan(TREE, "card:0,30%;cpu,*", HARDWARE, slots=value),
}
NUMBERS: dict[str, Callable[[Any], object]] = {
    "GB/s": lambda value: Link(source="cpu", target="c", gb_per_second=value),
    "latency": lambda value: Link(source="cpu", target="c", gb_per_second=1.0, latency_seconds=value),
    "unit_seconds": lambda value: plan(
        TREE, "card:0,30%;cpu,*", HARDWARE, unit_seconds={unit.path: value for unit in TREE.units}
    ),
    "compute_seconds": lambda value: predict(PLAN, HARDWARE, compute_seconds=value),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", NO_COUNT, ids=lambda value: repr(value)[:12])
def test_what_is_no_count_is_refused(name: str, value: Any) -> None:
    with pytest.raises((InvalidHardwareError, InvalidPlanError), match=name) as refused:
        COUNTS[name](value)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [value for value in NEITHER if value is not None], ids=lambda value: repr(value)[:12])
def test_what_is_no_number_is_refused(name: str, value: Any) -> None:
    with pytest.raises((InvalidHardwareError, InvalidPlanError), match=name) as refused:
        NUMBERS[name](value)
    assert len(str(refused.value)) < 250


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.text(max_size=3)))
def test_a_device_takes_a_number_or_says_why_not(value: Any) -> None:
    try:
        device = Device(name="c", total_bytes=value, free_bytes=0)
    except PlacementError:
        return
    assert type(device.total_bytes) is int and 0 <= device.total_bytes < 2**63


def test_resize_takes_a_number_of_slots() -> None:
    machine, model = emulated(), stack(2)
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
        for value in NO_COUNT:
            with pytest.raises(HandleStateError, match="slots cannot receive"):
                handle.resize(slots=value)
