"""What an error advises can be planned; where nothing can, it says what is missing and what helps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_trees import GIB, MIB, machine, movable_bytes, tree_of, trees

from alloc_spec import Budget, NoSpaceError
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
BUDGETS = [*TEXTS, "cuda:0,1kb;cpu,*", "cuda:0,30%;cpu,*", "cuda:1,*", "cuda:0,90%;cpu,10%", "cpu,1kb;cuda:0,*"]
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


@pytest.mark.parametrize("text", ["cuda:0,5gb;cpu,*", "cuda:0,50%;cpu,50%", "cuda:1,5gb;cuda:0,*", "#cuda:0;5;cpu"])
def test_an_amount_that_leaves_no_room_for_the_slots_is_answered_with_one_that_does(text: str) -> None:
    hardware = crowded(5 * GIB)
    with pytest.raises(BudgetTooSmallError, match="2 x 128 MiB of buffers") as caught:
        plan(tree_of([(64 * MIB,) * 4] * 40), text, hardware)
    advised = caught.value.suggestion
    assert advised is not None
    assert str(caught.value).endswith(f'\nthis would fit: "{advised}"')
    result = plan(tree_of([(64 * MIB,) * 4] * 40), advised, hardware)
    assert 4 * GIB < result.compute_peak_bytes <= 5 * GIB


def test_the_donors_that_were_asked_for_keep_what_they_were_asked_to_hold() -> None:
    with pytest.raises(BudgetTooSmallError) as caught:
        plan(TREE, "cuda:1,2gb;cuda:0,5gb;cpu,*", crowded(5 * GIB))
    assert caught.value.suggestion == "cuda:1,2gb;cuda:0,auto;cpu,*"


def test_an_amount_below_the_rest_is_answered_with_one_that_holds_it() -> None:
    with pytest.raises(BudgetTooSmallError, match="always resident") as caught:
        plan(TREE, "cuda:0,4mb;cpu,*", crowded(LEAST))
    assert caught.value.suggestion == "cuda:0,auto;cpu,*"


def test_a_donor_without_room_for_the_gaps_is_answered_with_another_donor() -> None:
    tree = tree_of([(1000,) * 8] * 20)
    hardware = crowded(GIB, donor_bytes=tree.size_bytes)
    with pytest.raises(BudgetTooSmallError) as caught:
        plan(tree, "cuda:1,*", hardware)
    assert caught.value.device == "cuda:1"
    assert caught.value.suggestion == "cuda:0,auto;cuda:1,*"
    assert plan(tree, caught.value.suggestion, hardware).streamed_bytes == 0


def test_a_budget_by_hand_is_answered_with_a_text() -> None:
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 5 * GIB, "cpu": TREE.size_bytes - 5 * GIB})
    with pytest.raises(BudgetTooSmallError) as caught:
        plan(TREE, budget, crowded(5 * GIB))
    assert caught.value.suggestion == "cuda:0,auto;cpu,*"


def test_a_large_unit_that_only_fits_resident_is_kept_resident() -> None:
    """Streamed it would need slots as large as itself: more of the model on the device takes less of it in all."""
    tree = tree_of([(MIB,)] * 40 + [(100 * MIB,)])
    hardware = crowded(130 * MIB)
    result = plan(tree, "cpu,*;cuda:0,auto", hardware, policy="contiguous")
    assert result.units[-1].bytes_on("cuda:0") == 100 * MIB
    assert result.compute_peak_bytes <= 130 * MIB


def test_without_donors_nothing_is_advised() -> None:
    with pytest.raises(NoSpaceError, match="use a smaller model") as caught:
        plan(TREE, "cuda:0,*", crowded(0, donors=0))
    assert caught.value.suggestion is None


def test_an_amount_below_the_rest_is_not_raised_beyond_the_room() -> None:
    hardware = crowded(5 * MIB)
    with pytest.raises(BudgetTooSmallError, match="Free memory on cuda:0") as caught:
        plan(TREE, "cuda:0,4mb;cpu,*", hardware)
    assert "give cuda:0 at least" not in str(caught.value)
    assert caught.value.missing_bytes == 6 * MIB


@settings(deadline=None)
@given(
    trees().filter(lambda tree: movable_bytes(tree) > 0),
    st.sampled_from(BUDGETS),
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
    except (NoSpaceError, BudgetTooSmallError) as error:
        if error.suggestion is not None:
            advised = plan(tree, error.suggestion, hardware, policy=policy, slots=slots)
            assert advised.compute_peak_bytes <= free_bytes
        elif isinstance(error, BudgetTooSmallError):
            assert error.missing_bytes > 0
