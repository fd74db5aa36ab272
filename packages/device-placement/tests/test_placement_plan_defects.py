"""The ancestor's defects, from what a user typed to where the bytes end up.

The model and the machine are those of the allocation language's acceptance tests: 40 equal blocks, 10 GiB; cuda:0 =
24, cuda:1 = 12, cuda:2 = 8, cpu = 128 GiB.
"""

from __future__ import annotations

import pytest
from placement_trees import GIB, MIB, tree_of

import alloc_spec
from device_placement import Device, Hardware, Link, PlacementPlan, plan

TREE = tree_of([(64 * MIB,) * 4] * 40)
BLOCK = 256 * MIB
SIZES = {"cuda:0": 24, "cuda:1": 12, "cuda:2": 8, "cpu": 128}


def machine_of(sizes: dict[str, int], compute: str = "cuda:0") -> Hardware:
    return Hardware(
        compute=compute,
        devices=tuple(Device(name=name, total_bytes=gib * GIB, free_bytes=gib * GIB) for name, gib in sizes.items()),
        links=tuple(Link(source=name, target=compute, gb_per_second=25) for name in sizes if name != compute),
    )


MACHINE = machine_of(SIZES)


def held(result: PlacementPlan) -> dict[str, float]:
    """GiB of the model by device, without those that hold nothing."""
    return {name: result.bytes_on(name) / GIB for name in (result.compute, *result.donors) if result.bytes_on(name)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # 1: the ancestor crashed on a wildcard outside byte mode
        ("cuda:0,50%;cpu,*", {"cuda:0": 5.0, "cpu": 5.0}),
        ("cuda:0,0.1;cpu,*", {"cuda:0": 2.4, "cpu": 7.6}),
        # 4: small amounts were rounded away
        ("cpu,4gb;cuda:0,*", {"cuda:0": 6.0, "cpu": 4.0}),
        # 6: shares of the model were 45, 37.5 and 17.5 %
        ("cuda:0,8%;cuda:1,8%;cpu,4%", {"cuda:0": 4.0, "cuda:1": 4.0, "cpu": 2.0}),
        # 7 and 8: order and amounts were the alphabet's
        ("cuda:0,2.5gb;cpu,*", {"cuda:0": 2.5, "cpu": 7.5}),
        ("cuda:2,2gb;cuda:1,2gb;cpu,*", {"cuda:2": 2.0, "cuda:1": 2.0, "cpu": 6.0}),
        ("cuda:2,2gb;cuda:1,2gb;cuda:0,*", {"cuda:0": 6.0, "cuda:2": 2.0, "cuda:1": 2.0}),
    ],
)
@pytest.mark.parametrize("policy", ["stripe", "contiguous"])
def test_every_device_holds_what_was_asked_within_a_block(text: str, expected: dict[str, float], policy: str) -> None:
    result = plan(TREE, text, MACHINE, policy=policy)  # type: ignore[arg-type]
    assert held(result) == {name: pytest.approx(gib, abs=BLOCK / GIB) for name, gib in expected.items()}


def test_a_type_that_begins_with_m_is_no_unit_of_bytes() -> None:
    """2: the letter m of ``mps`` selected byte mode."""
    result = plan(TREE, "mps,25%;cpu,75%", machine_of({"mps": 16, "cpu": 128}, compute="mps"))
    assert held(result) == {"mps": 2.5, "cpu": 7.5}


def test_controls_move_no_less_than_was_asked() -> None:
    """3: of 4.0 GB asked, 3.84 moved."""
    result = plan(TREE, "#cuda:0;4;cpu", MACHINE)
    assert 4.0 <= held(result)["cpu"] <= 4.0 + BLOCK / GIB


@pytest.mark.parametrize("size", [1, 4096, MIB, 100 * MIB + 1])
def test_the_smallest_amount_still_moves_something(size: int) -> None:
    """4: a megabyte was rounded away."""
    result = plan(TREE, f"cpu,{size}b;cuda:0,*", MACHINE)
    assert size <= result.bytes_on("cpu") <= size + BLOCK


def test_bytes_without_a_home_are_an_error_not_a_surprise_on_the_card() -> None:
    """5: 8.96 GB landed silently on cuda:0."""
    with pytest.raises(alloc_spec.NoHomeError):
        plan(TREE, "cuda:0,0.1;cpu,0.01", MACHINE)


def test_the_first_device_named_holds_the_first_blocks() -> None:
    """7: the last blocks landed on it."""
    result = plan(TREE, "cuda:0,2.5gb;cpu,*", MACHINE, policy="contiguous")
    first, last = result.units[0], result.units[-1]
    assert first.bytes_on("cuda:0") == BLOCK
    assert last.bytes_on("cpu") == BLOCK


@pytest.mark.parametrize("order", [("cuda:2", "cuda:1"), ("cuda:1", "cuda:2")])
def test_donors_are_filled_in_the_order_written(order: tuple[str, str]) -> None:
    """8: in alphabetical order, whatever was written."""
    result = plan(TREE, f"{order[0]},2gb;{order[1]},2gb;cpu,*", MACHINE)
    homes = [home.device for unit in result.units for home in unit.homes]
    assert list(dict.fromkeys(homes)) == [*order, "cpu"]


def test_donors_get_what_they_have_room_for() -> None:
    """15: 12.18 GB were put on a card of 12 GB."""
    tree = tree_of([(128 * MIB,) * 4] * 40)  # 20 GiB
    result = plan(tree, "#cuda:0;14;cuda:1,cpu", MACHINE)
    assert held(result)["cuda:1"] <= 12.0
    assert 14.0 <= held(result)["cuda:1"] + held(result)["cpu"] <= 14.0 + 0.5


def test_more_than_the_model_is_refused() -> None:
    """16: 2 GB came silently back to the compute device."""
    with pytest.raises(alloc_spec.AllocSpecError):
        plan(TREE, "#cuda:0;100;cuda:2", MACHINE)


def test_a_device_cannot_be_its_own_donor() -> None:
    """17: nothing moved, and the accounts were off by 4 GB."""
    with pytest.raises(alloc_spec.AllocSpecError):
        plan(TREE, "#cuda:0;4;cuda:0", MACHINE)


@pytest.mark.parametrize(
    "text", ["garbage", "cuda:9,2gb;cpu,*", "cpu,1gb;cpu,2gb;cuda:0,*", "cuda:0,-25%;cpu,75%", "cuda:0,0%"]
)
def test_nothing_is_planned_for_what_cannot_be_read(text: str) -> None:
    """9 to 14: accepted, crashed, or moved the whole model."""
    with pytest.raises(alloc_spec.AllocSpecError):
        plan(TREE, text, MACHINE)


def test_another_compute_device_in_the_text_is_refused() -> None:
    with pytest.raises(alloc_spec.ComputeDeviceError):
        plan(TREE, "#cuda:1;4;cpu", MACHINE)
