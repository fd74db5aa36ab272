"""Hardware and plans as data: what cannot exist is refused with a remedy, and JSON brings back the same."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_trees import GIB, machine

import device_placement
from device_placement import (
    Device,
    Estimate,
    Hardware,
    InvalidHardwareError,
    InvalidJsonError,
    InvalidPlanError,
    Link,
    PlacementError,
    PlacementPlan,
    Policy,
    TensorHome,
    UnitPlacement,
    UnknownDeviceError,
    predict,
)
from device_placement._plan import POLICIES

HOME = TensorHome(name="blocks.0.weight", size_bytes=1000, device="cpu")
UNIT = UnitPlacement(path="blocks.0", class_name="Block", kind="block", homes=(HOME,))
PLAN = PlacementPlan(compute="cuda:0", donors=("cpu",), policy="stripe", slots=2, units=(UNIT,))
HARDWARE = machine(24 * GIB, donors=("cpu", "cuda:1"))

names = st.text(min_size=1, max_size=8)
sizes = st.integers(0, 1 << 50)


@st.composite
def machines(draw: st.DrawFn) -> Hardware:
    devices = []
    for name in draw(st.lists(names, min_size=1, max_size=4, unique=True)):
        total = draw(sizes)
        free = draw(st.integers(0, total))
        devices.append(
            Device(name=name, total_bytes=total, free_bytes=free, reserve_bytes=draw(sizes), label=draw(st.text()))
        )
    compute = draw(st.sampled_from(devices)).name
    links = [
        Link(
            source=device.name,
            target=compute,
            gb_per_second=draw(st.floats(1e-3, 1e4)),
            latency_seconds=draw(st.floats(0, 1)),
            ingress=draw(names),
            verified=draw(st.booleans()),
        )
        for device in devices
        if device.name != compute
    ]
    return Hardware(compute=compute, devices=tuple(devices), links=tuple(links))


@given(machines())
def test_hardware_survives_json(hardware: Hardware) -> None:
    assert Hardware.from_json(hardware.to_json()) == hardware
    assert Hardware.from_json(hardware.to_json(indent=2)) == hardware


@given(machines())
def test_usable_memory_is_what_is_free_less_the_reserve_and_never_negative(hardware: Hardware) -> None:
    for device in hardware.devices:
        assert device.usable_bytes == max(0, device.free_bytes - device.reserve_bytes)


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"name": ""}, "'cuda:0'"),
        ({"total_bytes": -1}, "from 0 to"),
        ({"reserve_bytes": -1}, "from 0 to"),
        ({"free_bytes": 11}, "measured on the same device"),
    ],
)
def test_impossible_devices_are_refused_with_a_remedy(fields: dict[str, object], remedy: str) -> None:
    device = Device(name="cpu", total_bytes=10, free_bytes=10)
    with pytest.raises(InvalidHardwareError, match=remedy):
        replace(device, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"target": "cpu"}, "another device"),
        ({"gb_per_second": 0.0}, "above 0"),
        ({"gb_per_second": float("nan")}, "above 0"),
        ({"gb_per_second": float("inf")}, "above 0"),
        ({"latency_seconds": -1e-6}, "0 or more"),
        ({"latency_seconds": float("inf")}, "0 or more"),
    ],
)
def test_impossible_links_are_refused_with_a_remedy(fields: dict[str, object], remedy: str) -> None:
    link = Link(source="cpu", target="cuda:0", gb_per_second=25)
    with pytest.raises(InvalidHardwareError, match=remedy):
        replace(link, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"compute": "cuda:7"}, "add it"),
        ({"devices": ()}, "add it"),
        ({"devices": HARDWARE.devices * 2}, "keep one"),
        ({"links": HARDWARE.links * 2}, "keep one"),
        ({"links": (Link(source="cuda:9", target="cuda:0", gb_per_second=1),)}, "drop the link"),
    ],
)
def test_impossible_machines_are_refused_with_a_remedy(fields: dict[str, object], remedy: str) -> None:
    with pytest.raises(InvalidHardwareError, match=remedy):
        replace(HARDWARE, **fields)  # type: ignore[arg-type]


def test_devices_and_links_are_found_by_name() -> None:
    assert HARDWARE.donors == ("cpu", "cuda:1")
    assert HARDWARE.device("cuda:1").name == "cuda:1"
    assert HARDWARE.link("cuda:1", "cuda:0").source == "cuda:1"
    with pytest.raises(UnknownDeviceError, match="cuda:0, cpu, cuda:1"):
        HARDWARE.device("mps")


def test_reclaiming_counts_a_loaded_model_as_free_but_never_more_than_there_is() -> None:
    device = Device(name="cpu", total_bytes=10 * GIB, free_bytes=2 * GIB)
    loaded = Hardware(compute="cpu", devices=(device,))
    assert loaded.reclaiming("cpu", 3 * GIB).device("cpu").free_bytes == 5 * GIB
    assert loaded.reclaiming("cpu", 30 * GIB).device("cpu").free_bytes == 10 * GIB
    assert loaded.device("cpu").free_bytes == 2 * GIB


def test_copy_time_is_latency_plus_bytes_over_bandwidth() -> None:
    link = Link(source="cpu", target="cuda:0", gb_per_second=2.0, latency_seconds=0.5)
    assert link.copy_seconds(4_000_000_000) == 2.5


@pytest.mark.parametrize(
    ("fields", "remedy"),
    [
        ({"policy": "magic"}, "stripe, interleave, contiguous, legacy_tail"),
        ({"slots": 0}, "1 or more"),
        ({"donors": ("cpu", "cpu")}, "named twice"),
        ({"donors": ("cpu", "cuda:0")}, "named twice"),
        ({"donors": ()}, "add it to the donors"),
        ({"units": (UNIT, UNIT)}, "one entry"),
        ({"units": (UNIT, replace(UNIT, path="blocks.1"))}, "charge a tied tensor once"),
        ({"units": (replace(UNIT, path="", kind="rest"),)}, "must be 'cuda:0'"),
    ],
)
def test_plans_that_contradict_themselves_are_refused_with_a_remedy(fields: dict[str, object], remedy: str) -> None:
    with pytest.raises(InvalidPlanError, match=remedy):
        replace(PLAN, **fields)  # type: ignore[arg-type]


def test_a_tensor_of_negative_size_is_refused() -> None:
    with pytest.raises(InvalidPlanError, match="-5 bytes"):
        TensorHome(name="x", size_bytes=-5, device="cpu")


def test_data_cannot_be_changed_behind_a_plan() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.slots = 3  # type: ignore[misc]


def test_slots_hold_the_largest_share_with_every_tensor_aligned() -> None:
    homes = tuple(replace(HOME, name=f"w{index}", size_bytes=513) for index in range(3))
    larger = replace(PLAN, units=(replace(UNIT, homes=homes),))
    assert larger.slot_bytes == 3 * 1024
    assert larger.compute_peak_bytes == 2 * 3 * 1024
    assert larger.streamed_bytes == 3 * 513


def broken(change: dict[str, object], at: tuple[str | int, ...] = ()) -> str:
    """Text of PLAN with fields changed in the object at a path."""
    data = json.loads(PLAN.to_json())
    target = data
    for step in at:
        target = target[step]
    target.update(change)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", ""),
        ("[]", ""),
        ("{}", ""),
        (broken({"format": "device-placement/hardware"}), ""),
        (broken({"version": 99}), "version"),
        (broken({"slots": "2"}), "slots"),
        (broken({"slots": True}), "slots"),
        (broken({"slots": 2.0}), "slots"),
        (broken({"policy": "magic"}), "policy"),
        (broken({"donors": "cpu"}), "donors"),
        (broken({"donors": [1]}), "donors[0]"),
        (broken({"colour": "red"}), "colour"),
        (broken({"size": 1}, ("units", 0, "homes", 0)), "units[0].homes[0].size"),
        (broken({"size_bytes": None}, ("units", 0, "homes", 0)), "units[0].homes[0].size_bytes"),
        (broken({"units": [7]}), "units[0]"),
        (broken({"policy": []}), "policy"),
    ],
)
def test_json_that_is_not_a_plan_is_refused_at_the_place(text: str, where: str) -> None:
    with pytest.raises(InvalidJsonError) as caught:
        PlacementPlan.from_json(text)
    assert caught.value.where == where


def test_a_missing_field_is_named_and_one_with_a_default_may_be_missing() -> None:
    data = json.loads(PLAN.to_json())
    del data["warnings"]
    assert PlacementPlan.from_json(json.dumps(data)) == PLAN
    del data["units"][0]["kind"]
    with pytest.raises(InvalidJsonError, match=r"units\[0\]\.kind"):
        PlacementPlan.from_json(json.dumps(data))


def test_the_same_holds_for_estimates() -> None:
    estimate = Estimate(
        compute="cuda:0", seconds=1.0, compute_seconds=1, transfer_seconds=0.5, bound="link", peak_bytes={"cpu": 5}
    )
    assert Estimate.from_json(estimate.to_json()) == estimate
    data = json.loads(estimate.to_json())
    for change, where in [({"peak_bytes": []}, "peak_bytes"), ({"peak_bytes": {"cpu": 0.5}}, "peak_bytes['cpu']")]:
        with pytest.raises(InvalidJsonError) as caught:
            Estimate.from_json(json.dumps(data | change))
        assert caught.value.where == where


def test_json_that_contradicts_itself_is_refused_as_a_plan() -> None:
    with pytest.raises(InvalidPlanError, match="0 slots"):
        PlacementPlan.from_json(broken({"slots": 0}))


@given(st.text(max_size=40) | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(json.dumps))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(InvalidJsonError):
        PlacementPlan.from_json(text)


def test_policies_are_those_of_the_type_and_stripe_is_the_first() -> None:
    first: Policy = "stripe"
    assert (first, "interleave", "contiguous", "legacy_tail") == POLICIES


def test_every_error_of_the_package_has_one_root() -> None:
    errors = [getattr(device_placement, name) for name in device_placement.__all__ if name.endswith("Error")]
    assert errors and all(issubclass(error, PlacementError) for error in errors)


IMPOSSIBLE = ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" + "0" * 400, "1" * 5000]


@pytest.mark.parametrize("number", IMPOSSIBLE, ids=lambda text: text[:12])
@pytest.mark.parametrize("field", ["gb_per_second", "latency_seconds"])
def test_a_number_that_no_float_can_be_is_refused(field: str, number: str) -> None:
    text = HARDWARE.to_json()
    value = getattr(HARDWARE.links[0], field)
    broken = text.replace(f'"{field}": {value!r}', f'"{field}": {number}', 1)
    assert broken != text
    with pytest.raises(InvalidJsonError):
        Hardware.from_json(broken)


def test_an_estimate_with_an_impossible_time_is_refused() -> None:
    estimate = predict(PLAN, HARDWARE, compute_seconds=0.25)
    text = estimate.to_json().replace('"compute_seconds": 0.25', '"compute_seconds": NaN', 1)
    assert "NaN" in text
    with pytest.raises(InvalidJsonError, match="NaN"):
        Estimate.from_json(text)


def test_a_text_nested_too_deeply_is_refused() -> None:
    with pytest.raises(InvalidJsonError, match="nested deeper"):
        PlacementPlan.from_json("[" * 100_000)
