"""What an error advises can be planned; where nothing can, it says what is missing and what helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_trees import GIB, MIB, machine, movable_bytes, tree_of, trees

from alloc_spec import NoSpaceError
from block_discovery import BlockTree
from device_placement import BudgetTooSmallError, Hardware, Policy, plan

TREE = tree_of([(64 * MIB,) * 4] * 40, rest_sizes=[10 * MIB])
LEAST = 10 * MIB + 2 * 256 * MIB
TEXTS = [
    "cuda:0,60%;cuda:1,40%",
    "cuda:0,8gb;cuda:1,40%;cpu,*",
    "cuda:0,*;cpu,10%",
    "cuda:0,0.9;cuda:1,0.0001",
    "cuda:0,free;cuda:1,1kb",
    "#cuda:0;0;cpu",
    "#cuda:0;1;cuda:1,cpu",
    "#cuda:0;100;cpu",
]
POLICIES: list[Policy] = ["stripe", "interleave", "contiguous", "legacy_tail"]


def crowded(
    free_bytes: int, *, donor_bytes: int = 128 * GIB, tight_bytes: int | None = None, donors: int = 2
) -> Hardware:
    """A machine whose compute device, and on demand ``cuda:1``, has little left."""
    hardware = machine(24 * GIB, donors=("cuda:1", "cpu")[:donors], donor_bytes=donor_bytes)
    free = {"cuda:0": free_bytes, "cuda:1": donor_bytes if tight_bytes is None else tight_bytes}
    devices = tuple(replace(each, free_bytes=free.get(each.name, each.free_bytes)) for each in hardware.devices)
    return replace(hardware, devices=devices)


@pytest.mark.parametrize("text", TEXTS)
def test_with_room_for_the_slots_alone_the_advice_can_be_planned(text: str) -> None:
    hardware = crowded(LEAST)
    with pytest.raises(NoSpaceError) as caught:
        plan(TREE, text, hardware)
    assert caught.value.suggestion is not None
    assert plan(TREE, caught.value.suggestion, hardware).compute_peak_bytes == LEAST


def test_an_advice_that_can_be_planned_is_left_as_it_was() -> None:
    with pytest.raises(NoSpaceError, match='this would fit: "cuda:0,8gb;cuda:1,free;cpu,\\*"'):
        plan(TREE, "cuda:0,8gb;cuda:1,*", crowded(24 * GIB, tight_bytes=GIB))


@pytest.mark.parametrize("free_bytes", [0, MIB, LEAST - 1])
@pytest.mark.parametrize("text", TEXTS)
def test_without_room_for_the_slots_nothing_is_advised_but_what_is_missing(text: str, free_bytes: int) -> None:
    with pytest.raises(BudgetTooSmallError) as caught:
        plan(TREE, text, crowded(free_bytes))
    assert caught.value.device == "cuda:0"
    assert caught.value.missing_bytes == LEAST - free_bytes
    assert "this would fit" not in str(caught.value)
    assert "free memory on cuda:0, lower its reserve or use fewer slots" in str(caught.value)
    assert isinstance(caught.value.__cause__, NoSpaceError)


def test_without_donors_nothing_is_advised() -> None:
    with pytest.raises(NoSpaceError, match="use a smaller model") as caught:
        plan(TREE, "cuda:0,*", crowded(0, donors=0))
    assert caught.value.suggestion is None


def test_an_amount_below_the_rest_is_not_raised_beyond_the_room() -> None:
    hardware = crowded(5 * MIB)
    with pytest.raises(BudgetTooSmallError, match="free memory on cuda:0") as caught:
        plan(TREE, "cuda:0,4mb;cpu,*", hardware)
    assert "give cuda:0 at least" not in str(caught.value)
    assert caught.value.missing_bytes == 6 * MIB


@settings(deadline=None)
@given(
    trees().filter(lambda tree: movable_bytes(tree) > 0),
    st.sampled_from(TEXTS),
    st.sampled_from(POLICIES),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 3),
)
def test_whatever_is_advised_is_planned(
    tree: BlockTree, text: str, policy: Policy, free: float, tight: float, slots: int
) -> None:
    free_bytes, tight_bytes = int(free * tree.size_bytes), int(tight * tree.size_bytes)
    hardware = crowded(free_bytes, tight_bytes=tight_bytes, donor_bytes=1 << 23)
    try:
        plan(tree, text, hardware, policy=policy, slots=slots)
    except NoSpaceError as error:
        if error.suggestion is not None:
            advised = plan(tree, error.suggestion, hardware, policy=policy, slots=slots)
            assert advised.compute_peak_bytes <= free_bytes
    except BudgetTooSmallError as error:
        assert error.missing_bytes > 0
