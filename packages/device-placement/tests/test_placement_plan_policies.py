"""What each policy chooses: evenness, spacing, and which units are left alone as long as possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_trees import FLUX_SINGLE, GIB, MIB, machine, tree_of, unit

from alloc_spec import Budget
from block_discovery import BlockTree
from device_placement import PlacementPlan, Policy, plan
from device_placement.planning._selection import assumed_weight


def streaming(tree: BlockTree, need_bytes: int, policy: Policy = "stripe", slots: int = 2) -> list[int]:
    """Streamed bytes of each unit when `need_bytes` of a tree have to move."""
    amounts = {"cuda:0": tree.size_bytes - need_bytes, "cpu": need_bytes}
    budget = Budget(order=("cuda:0", "cpu"), amounts=amounts)
    result: PlacementPlan = plan(tree, budget, machine(1024 * GIB, donor_bytes=1024 * GIB), policy=policy, slots=slots)
    return [unit.streamed_bytes("cuda:0") for unit in result.units]


def test_stripe_streams_the_same_share_of_equal_blocks() -> None:
    assert streaming(tree_of([(10, 20, 30, 40)] * 8), 8 * 50) == [50] * 8


@given(st.integers(1, 40), st.integers(0, 40))
def test_stripe_differs_by_at_most_one_tensor_between_equal_blocks(count: int, tensors: int) -> None:
    need = min(tensors, 4 * count) * MIB
    shares = streaming(tree_of([(MIB,) * 4] * count), need)
    assert sum(shares) == need
    assert max(shares) - min(shares) <= MIB


def test_stripe_spreads_the_blocks_that_stream_more() -> None:
    shares = streaming(tree_of([(MIB, MIB)] * 12), 15 * MIB)
    heavier = [index for index, share in enumerate(shares) if share == 2 * MIB]
    assert heavier == [2, 6, 10]


def test_stripe_never_streams_a_whole_block_while_others_keep_theirs() -> None:
    shares = streaming(tree_of([(100, 100, 100)] * 10), 1000)
    assert set(shares) == {100}


def test_stripe_streams_few_large_tensors_and_leaves_the_small_ones() -> None:
    block = (40 * MIB, 40 * MIB, 4096, 4096, 4096)
    tree = tree_of([block] * 10)
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 400 * MIB + 10 * 3 * 4096, "cpu": 400 * MIB})
    result = plan(tree, budget, machine(4 * GIB))
    assert all(home.size_bytes == 40 * MIB for unit in result.units for home in unit.homes if home.device == "cpu")


def test_stripe_streams_the_small_tensors_when_everything_has_to_go() -> None:
    block = (40 * MIB, 4096)
    assert streaming(tree_of([block] * 10), 10 * sum(block)) == [sum(block)] * 10


def test_stripe_follows_measured_seconds() -> None:
    tree = tree_of([(MIB,) * 12] * 6)
    seconds = {f"blocks.{index}": (1.0 if index < 3 else 3.0) for index in range(6)}
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 48 * MIB, "cpu": 24 * MIB})
    result = plan(tree, budget, machine(4 * GIB), unit_seconds=seconds)
    # The copy for a block hides behind the block before it, so the shares follow the seconds one block late.
    assert [unit.streamed_bytes("cuda:0") // MIB for unit in result.units] == [6, 2, 2, 2, 6, 6]


def test_with_more_slots_a_copy_hides_behind_more_blocks() -> None:
    tree = tree_of([(MIB,) * 12] * 6)
    seconds = {f"blocks.{index}": (1.0 if index < 3 else 3.0) for index in range(6)}
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 48 * MIB, "cpu": 24 * MIB})
    result = plan(tree, budget, machine(4 * GIB), unit_seconds=seconds, slots=3)
    assert [unit.streamed_bytes("cuda:0") // MIB for unit in result.units] == [6, 4, 2, 2, 4, 6]


@pytest.mark.parametrize("policy", ["stripe", "interleave"])
def test_a_lookup_table_streams_only_when_the_blocks_have_nothing_left(policy: Policy) -> None:
    blocks = [unit(f"blocks.{index}", (MIB, MIB)) for index in range(4)]
    table = unit("embed", (8 * MIB,), kind="leaf", is_embedding=True)
    tree = BlockTree(units=(table, *blocks))
    assert streaming(tree, 8 * MIB, policy) == [0, *[2 * MIB] * 4]
    assert streaming(tree, 8 * MIB + 1, policy) == [8 * MIB, *[2 * MIB] * 4]


@pytest.mark.parametrize("policy", ["stripe", "interleave"])
def test_small_layers_between_blocks_keep_their_bytes(policy: Policy) -> None:
    """Their short forward hides no copy, and their copy would take the turn of one that has a block to hide behind."""
    units = []
    for index in range(6):
        units += [unit(f"blocks.{index}", (32 * MIB, 32 * MIB)), unit(f"gate.{index}", (MIB,), kind="leaf")]
    shares = streaming(BlockTree(units=tuple(units)), 6 * 32 * MIB, policy)
    assert shares[1::2] == [0] * 6
    assert sum(shares[::2]) == 6 * 32 * MIB


def test_interleave_spaces_streamed_blocks_evenly() -> None:
    shares = streaming(tree_of([(MIB,)] * 12), 4 * MIB, "interleave")
    streamed = [index for index, share in enumerate(shares) if share]
    gaps = {(after - before) % 12 for before, after in zip(streamed, [*streamed[1:], streamed[0]], strict=True)}
    assert gaps == {3}


@given(st.integers(2, 60), st.integers(1, 60))
def test_interleave_never_leaves_two_neighbours_streamed_while_two_are_resident(count: int, streamed: int) -> None:
    shares = streaming(tree_of([(MIB,)] * count), min(streamed, count) * MIB, "interleave")
    flags = [share > 0 for share in shares]
    runs = {flag: any(flags[i] == flags[i + 1] == flag for i in range(count - 1)) for flag in (True, False)}
    assert not (runs[True] and runs[False])


def test_stripe_needs_a_fraction_of_the_slots_of_whole_block_policies() -> None:
    tree = tree_of([FLUX_SINGLE] * 38)
    need = tree.size_bytes // 3
    assert max(streaming(tree, need)) < 0.4 * max(streaming(tree, need, "interleave"))


def test_blocks_count_the_same_whatever_their_size_unless_they_were_measured() -> None:
    tree = tree_of([(MIB,) * 8] * 3 + [(4 * MIB,) * 8] * 3)
    assert streaming(tree, 24 * MIB) == [4 * MIB] * 6


def test_single_layers_and_lookup_tables_are_taken_to_compute_little_and_nothing() -> None:
    assert assumed_weight("block") > 4 * assumed_weight("leaf") > 0
    assert assumed_weight("leaf", is_embedding=True) == assumed_weight("rest") == 0


def test_a_model_of_single_layers_alone_streams_all_of_them_alike() -> None:
    units = [unit(f"layer{index}", (MIB,) * 4, kind="leaf") for index in range(6)]
    assert streaming(BlockTree(units=tuple(units)), 12 * MIB) == [2 * MIB] * 6


def test_zero_byte_tensors_stay_where_they_compute() -> None:
    tree = tree_of([(0, MIB)] * 3)
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 0, "cpu": 3 * MIB})
    result = plan(tree, budget, machine(GIB))
    assert [home.device for unit in result.units for home in unit.homes] == ["cuda:0", "cpu"] * 3


def test_one_block_with_two_slots_hides_behind_itself() -> None:
    assert streaming(tree_of([(MIB, MIB)]), MIB) == [MIB]


def test_units_without_any_byte_are_left_alone() -> None:
    assert streaming(tree_of([(0,), (MIB,)]), MIB, "interleave") == [0, MIB]
