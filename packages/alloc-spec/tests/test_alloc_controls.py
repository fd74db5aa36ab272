"""The simple controls."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alloc_spec import (
    AllocSyntaxError,
    AllocValueError,
    DeviceMemory,
    Dialect,
    ExceedsModelError,
    NoRoomError,
    from_controls,
    parse,
    parse_wire,
    resolve,
)

GIB = 2**30
MACHINE = {
    "cuda:0": DeviceMemory(total=24 * GIB, free=20 * GIB, reserve=4 * GIB),
    "cuda:1": DeviceMemory(total=12 * GIB, free=12 * GIB, reserve=2 * GIB),
    "cpu": DeviceMemory(total=64 * GIB, free=48 * GIB),
}


def test_controls_and_the_wire_string_are_the_same_specification() -> None:
    spec = from_controls(compute_device="CUDA:0", virtual_ram_gb=4.5, donor_device=("cuda:1", " CPU "))
    assert spec == parse_wire("#cuda:0;4.5;cuda:1,cpu") == parse(str(spec))
    assert spec.source == str(spec) == "#cuda:0;4.5;cuda:1,cpu"
    assert spec.dialect is Dialect.CONTROLS
    assert spec.compute_device == "cuda:0"
    assert spec.devices == ("cuda:0", "cuda:1", "cpu")


def test_the_donor_is_the_cpu_unless_said_otherwise() -> None:
    assert from_controls(compute_device="cuda:0", virtual_ram_gb=4).devices == ("cuda:0", "cpu")


def test_several_donors_may_be_one_text() -> None:
    together = from_controls(compute_device="cuda:0", virtual_ram_gb=4, donor_device="cuda:1, cpu")
    assert together == from_controls(compute_device="cuda:0", virtual_ram_gb=4, donor_device=["cuda:1", "cpu"])


@given(st.floats(0, 2**32, allow_nan=False))
def test_any_amount_reads_back_from_the_canonical_text(gigabytes: float) -> None:
    spec = from_controls(compute_device="cuda:0", virtual_ram_gb=gigabytes)
    assert parse(str(spec)) == spec


@given(st.integers(0, 400).map(lambda tenths: tenths / 10))
def test_a_slider_value_moves_what_its_text_says(gigabytes: float) -> None:
    spec = from_controls(compute_device="cuda:0", virtual_ram_gb=gigabytes)
    assert str(spec) == f"#cuda:0;{gigabytes:g};cpu"
    assert spec == parse_wire(f"#cuda:0;{gigabytes};cpu")


@given(st.floats(0, 10, allow_nan=False), st.integers(10 * GIB, 20 * GIB))
def test_at_least_what_was_asked_moves_and_less_than_a_byte_more(gigabytes: float, model_bytes: int) -> None:
    spec = from_controls(compute_device="cuda:0", virtual_ram_gb=gigabytes, donor_device="cuda:1,cpu")
    budget = resolve(spec, model_bytes=model_bytes, devices=MACHINE | {"cuda:0": MACHINE["cpu"]})
    moved = budget.bytes_for("cuda:1") + budget.bytes_for("cpu")
    assert moved == math.ceil(Fraction(str(gigabytes)) * GIB)
    assert budget.model_bytes == model_bytes


def test_donors_are_filled_in_their_order_up_to_their_room() -> None:
    spec = from_controls(compute_device="cuda:0", virtual_ram_gb=14, donor_device=["cuda:1", "cpu"])
    assert resolve(spec, model_bytes=20 * GIB, devices=MACHINE).as_dict() == {
        "cuda:0": 6 * GIB,
        "cuda:1": 10 * GIB,
        "cpu": 4 * GIB,
    }
    turned = from_controls(compute_device="cuda:0", virtual_ram_gb=14, donor_device=["cpu", "cuda:1"])
    assert resolve(turned, model_bytes=20 * GIB, devices=MACHINE).as_dict() == {
        "cuda:0": 6 * GIB,
        "cpu": 14 * GIB,
        "cuda:1": 0,
    }


def test_nothing_moves_when_nothing_is_asked() -> None:
    budget = resolve(parse("#cuda:0;0;cpu"), model_bytes=10 * GIB, devices=MACHINE)
    assert budget.as_dict() == {"cuda:0": 10 * GIB, "cpu": 0}
    assert budget.compute_device == "cuda:0"


def test_the_whole_model_may_move() -> None:
    assert resolve(parse("#cuda:0;10;cpu"), model_bytes=10 * GIB, devices=MACHINE).bytes_for("cuda:0") == 0


def test_more_than_the_model_may_not_move() -> None:
    with pytest.raises(ExceedsModelError) as caught:
        resolve(parse("#cuda:0;10.1;cpu"), model_bytes=10 * GIB, devices=MACHINE)
    assert caught.value.asked_bytes == math.ceil(Fraction("10.1") * GIB)
    assert caught.value.model_bytes == 10 * GIB
    assert caught.value.suggestion == "#cuda:0;10;cpu"


def test_donors_without_room_are_an_error_for_all_of_them_together() -> None:
    with pytest.raises(NoRoomError) as caught:
        resolve(parse("#cuda:0;12;cuda:1"), model_bytes=20 * GIB, devices=MACHINE)
    assert caught.value.devices == ("cuda:1",)
    assert caught.value.missing_bytes == 2 * GIB
    assert caught.value.suggestion == "#cuda:0;12;cuda:1,cpu"


def test_a_compute_device_without_room_is_an_error_that_leaves_the_amount_to_the_planner() -> None:
    with pytest.raises(NoRoomError) as caught:
        resolve(parse("#cuda:0;1;cpu"), model_bytes=20 * GIB + 1, devices=MACHINE)
    assert caught.value.devices == ("cuda:0",)
    assert caught.value.missing_bytes == 3 * GIB + 1
    assert caught.value.suggestion == "cuda:0,auto;cpu,*#cuda:0"


@pytest.mark.parametrize("gigabytes", [-1, -0.001, math.nan, math.inf, -math.inf, 1e300, 2**34, True, "4", None, 4j])
def test_gigabytes_that_cannot_be_are_refused(gigabytes: float) -> None:
    with pytest.raises(AllocValueError) as caught:
        from_controls(compute_device="cuda:0", virtual_ram_gb=gigabytes)
    assert caught.value.field == "virtual_ram_gb"


def test_minus_nothing_is_nothing() -> None:
    assert str(from_controls(compute_device="cuda:0", virtual_ram_gb=-0.0)) == "#cuda:0;0;cpu"


@pytest.mark.parametrize(
    ("donors", "reason"),
    [
        ("cuda:0", "cuda:0 computes and cannot be its own donor"),
        (["cpu", "CUDA:0"], "cuda:0 computes and cannot be its own donor"),
        ("cpu,cuda:1,cpu", "the donor cpu is named twice"),
        ([], "name at least one donor"),
    ],
)
def test_donors_that_cannot_be_are_refused(donors: str | list[str], reason: str) -> None:
    with pytest.raises(AllocValueError, match=reason) as caught:
        from_controls(compute_device="cuda:0", virtual_ram_gb=4, donor_device=donors)
    assert caught.value.field == "donor_device"


@pytest.mark.parametrize(
    ("compute", "donor", "message"),
    [
        ("cuda:0,cuda:1", "cpu", "expected the end after the device, found ','"),
        ("", "cpu", "expected a device name, found the end"),
        ("cuda:0", "", "expected a donor device, found the end"),
        ("cuda:0", "cpu;cuda:1", "expected the end after a device name, found ';'"),
        ("cuda:0", ["cpu", "cuda 1"], "expected the end after a device name, found '1'"),
    ],
)
def test_device_names_of_controls_are_read_by_the_grammar(compute: str, donor: str | list[str], message: str) -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        from_controls(compute_device=compute, virtual_ram_gb=4, donor_device=donor)
    assert caught.value.message == message
