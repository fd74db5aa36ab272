"""From an allocation to a plan: what the compute device may hold, who gets the rest, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from placement_trees import GIB, MIB, flux_tree, machine, rest, tree_of, unit

import alloc_spec
from alloc_spec import Budget
from block_discovery import BlockTree
from device_placement import BudgetTooSmallError, InvalidPlanError, PlacementPlan, UnknownDeviceError, plan

BLOCK = (64 * MIB,) * 4
TREE = tree_of([BLOCK] * 40)  # 40 equal blocks, 10 GiB


def resident_fraction(result: PlacementPlan) -> float:
    return result.bytes_on("cuda:0") / result.size_bytes


def test_text_specification_and_budget_of_one_allocation_give_one_plan() -> None:
    hardware = machine(24 * GIB)
    spec = alloc_spec.parse("cuda:0,2.5gb;cpu,*")
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 5 * GIB // 2, "cpu": 15 * GIB // 2})
    from_text = plan(TREE, "cuda:0,2.5gb;cpu,*", hardware)
    assert from_text == plan(TREE, spec, hardware) == plan(TREE, budget, hardware)
    assert resident_fraction(from_text) == 0.25


def test_a_device_that_is_to_run_is_refused_rather_than_ignored() -> None:
    hardware = machine(24 * GIB, donors=("cuda:1", "cpu"))
    with pytest.raises(InvalidPlanError, match="do not run blocks on cuda:1 yet; leave out ',run'"):
        plan(TREE, "cuda:0,2.5gb;cuda:1,2gb,run;cpu,*", hardware)
    warned = plan(TREE, "cuda:0,2.5gb,run;cuda:1,2gb;cpu,*", hardware)
    assert replace(warned, warnings=()) == plan(TREE, "cuda:0,2.5gb;cuda:1,2gb;cpu,*", hardware)
    assert any("'run' has no effect" in warning for warning in warned.warnings)


def test_simple_controls_move_exactly_the_gigabytes_asked() -> None:
    result = plan(
        TREE,
        alloc_spec.from_controls(compute_device="cuda:0", virtual_ram_gb=4.0, donor_device="cpu"),
        machine(24 * GIB),
    )
    assert result.bytes_on("cpu") == 4 * GIB


def test_bytes_that_are_no_multiple_of_a_tensor_move_at_least_what_was_asked() -> None:
    result = plan(TREE, "cpu,4100mb;cuda:0,*", machine(24 * GIB))
    assert 4100 * MIB <= result.bytes_on("cpu") < 4100 * MIB + 64 * MIB


@pytest.mark.parametrize("text", ["cuda:0,2.5gb;cpu,*", "cuda:0,25%;cpu,*", "cuda:0,25%;cpu,75%"])
def test_contiguous_puts_the_first_blocks_on_the_first_device_named(text: str) -> None:
    result = plan(TREE, text, machine(24 * GIB), policy="contiguous")
    assert [unit.bytes_on("cuda:0") > 0 for unit in result.units] == [True] * 10 + [False] * 30


def test_contiguous_keeps_the_middle_when_the_compute_device_is_named_in_the_middle() -> None:
    hardware = machine(24 * GIB, donors=("cuda:2", "cuda:1"))
    result = plan(TREE, "cuda:2,2gb;cuda:0,3gb;cuda:1,*", hardware, policy="contiguous")
    homes = ["cuda:2"] * 8 + ["cuda:0"] * 12 + ["cuda:1"] * 20
    assert [{home.device for home in unit.homes} for unit in result.units] == [{home} for home in homes]


def test_legacy_tail_lands_the_last_blocks_on_the_compute_device_as_the_ancestor_did() -> None:
    result = plan(TREE, "cuda:0,2.5gb;cpu,*", machine(24 * GIB), policy="legacy_tail")
    assert [unit.bytes_on("cuda:0") > 0 for unit in result.units] == [False] * 30 + [True] * 10


def test_donors_are_used_in_the_users_order_not_the_alphabets() -> None:
    hardware = machine(24 * GIB, donors=("cuda:10", "cuda:2", "cpu"))
    result = plan(TREE, "cuda:10,2gb;cuda:2,2gb;cpu,2gb;cuda:0,*", hardware)
    homes = [home.device for unit in result.units for home in unit.homes if home.device != "cuda:0"]
    assert homes == ["cuda:10"] * 32 + ["cuda:2"] * 32 + ["cpu"] * 32
    assert result.donors == ("cuda:10", "cuda:2", "cpu")


def test_a_whole_model_on_the_compute_device_streams_nothing_and_needs_no_slot() -> None:
    result = plan(TREE, "cuda:0,*", machine(10 * GIB))
    assert result.donors == () and result.slot_bytes == 0
    assert result.compute_peak_bytes == 10 * GIB


def test_the_rest_counts_as_model_bytes_of_the_compute_device() -> None:
    tree = tree_of([BLOCK] * 4, rest_sizes=[10 * MIB])
    result = plan(tree, "cuda:0,522mb;cpu,*", machine(4 * GIB))
    assert result.bytes_on("cuda:0") == 522 * MIB


def test_an_amount_of_nothing_keeps_the_rest_and_says_so() -> None:
    tree = tree_of([BLOCK] * 4, rest_sizes=[10 * MIB])
    result = plan(tree, "cpu,*", machine(4 * GIB))
    assert result.bytes_on("cuda:0") == 10 * MIB
    assert any("cuda:0" in warning and "10 MiB" in warning for warning in result.warnings)


def test_an_amount_below_the_rest_is_refused_with_the_amount_that_would_do() -> None:
    tree = tree_of([BLOCK] * 4, rest_sizes=[10 * MIB])
    with pytest.raises(BudgetTooSmallError, match="Give cuda:0 at least 10 MiB") as caught:
        plan(tree, "cuda:0,4mb;cpu,*", machine(4 * GIB))
    assert caught.value.missing_bytes == 6 * MIB
    assert caught.value.device == "cuda:0"


def test_a_model_without_blocks_cannot_be_moved() -> None:
    with pytest.raises(BudgetTooSmallError, match="always resident"):
        plan(BlockTree(units=(rest([10 * MIB]),)), "cpu,*", machine(4 * GIB))


def test_slots_come_on_top_of_the_amount_and_must_fit() -> None:
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 5 * GIB, "cpu": 5 * GIB})
    fitting = plan(TREE, budget, machine(5 * GIB + 2 * 128 * MIB))
    assert fitting.slot_bytes == 128 * MIB
    with pytest.raises(BudgetTooSmallError) as caught:
        plan(TREE, budget, machine(5 * GIB + 2 * 128 * MIB - 1))
    assert caught.value.missing_bytes == 1


def test_the_refusal_names_an_amount_that_is_accepted() -> None:
    hardware = machine(5 * GIB)
    with pytest.raises(BudgetTooSmallError, match="Keep at most") as caught:
        plan(TREE, "cuda:0,5gb;cpu,*", hardware)
    number, unit = str(caught.value).split("Keep at most ")[1].split()[:2]
    most = int(float(number) * {"MiB": MIB, "GiB": GIB}[unit])
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": most, "cpu": TREE.size_bytes - most})
    assert plan(TREE, budget, hardware).compute_peak_bytes <= 5 * GIB


def test_a_card_too_small_for_the_least_says_what_the_least_is() -> None:
    tree = tree_of([(512 * MIB,)] * 4)
    with pytest.raises(BudgetTooSmallError, match="fewer slots") as caught:
        plan(tree, "cpu,*", machine(600 * MIB))
    assert caught.value.needed_bytes == 1024 * MIB
    assert plan(tree, "cpu,*", machine(600 * MIB), slots=1).bytes_on("cpu") == tree.size_bytes


@pytest.mark.parametrize("policy", ["stripe", "interleave", "contiguous", "legacy_tail"])
@pytest.mark.parametrize("gib", [2, 4, 6, 8, 9])
def test_auto_fills_the_card_and_never_overfills_it(gib: int, policy: str) -> None:
    result = plan(TREE, "cuda:0,auto;cpu,*", machine(gib * GIB), policy=policy)  # type: ignore[arg-type]
    block = sum(BLOCK)
    assert gib * GIB - 2 * block < result.compute_peak_bytes <= gib * GIB


def test_auto_keeps_a_model_that_fits_resident() -> None:
    result = plan(TREE, "cuda:0,auto;cpu,*", machine(10 * GIB))
    assert result.streamed_bytes == 0


def test_auto_never_takes_back_what_was_asked_of_a_donor() -> None:
    result = plan(TREE, "cuda:0,auto;cpu,4gb", machine(24 * GIB))
    assert result.bytes_on("cpu") == 4 * GIB


def test_auto_leaves_an_asked_donor_alone_and_shrinks_the_wildcard() -> None:
    result = plan(TREE, "cuda:0,auto;cuda:1,1gb;cpu,*", machine(24 * GIB, donors=("cuda:1", "cpu")))
    assert result.bytes_on("cuda:1") == GIB
    assert result.bytes_on("cpu") == 0


def test_a_resolved_budget_lets_auto_grow_only_into_other_auto_devices() -> None:
    amounts = {"cuda:0": 3 * GIB, "cuda:1": 3 * GIB, "cpu": 4 * GIB}
    budget = Budget(order=tuple(amounts), amounts=amounts, auto_devices=frozenset({"cuda:0", "cuda:1"}))
    result = plan(TREE, budget, machine(24 * GIB, donors=("cuda:1", "cpu")))
    assert [result.bytes_on(name) for name in amounts] == [6 * GIB, 0, 4 * GIB]


def test_rounding_goes_to_the_donor_with_the_wildcard() -> None:
    tree = tree_of([(100 * MIB,)] * 20)
    result = plan(tree, "cuda:1,250mb;cpu,*;cuda:2,250mb", machine(4 * GIB, donors=("cuda:1", "cpu", "cuda:2")))
    assert [result.bytes_on(name) // MIB for name in ("cuda:1", "cpu", "cuda:2")] == [200, 1600, 200]


WHOLE = tree_of([(100 * MIB,)] * 20)
THREE = ("cuda:1", "cuda:2", "cpu")


@pytest.mark.parametrize("policy", ["stripe", "interleave", "contiguous", "legacy_tail"])
@pytest.mark.parametrize("donors", ["cuda:1,cuda:2,cpu", "cuda:1,cpu", "cpu,cuda:1"])
def test_rounding_stays_with_the_donors_that_are_asked_first(donors: str, policy: str) -> None:
    """250 MB are three layers: the third goes where there is room and something already, not to a donor left idle."""
    result = plan(WHOLE, f"#cuda:0;0.25;{donors}", machine(4 * GIB, donors=THREE), policy=policy)  # type: ignore[arg-type]
    assert result.bytes_on(donors.split(",")[0]) == 300 * MIB


def test_rounding_goes_on_to_the_donor_in_use_that_has_room() -> None:
    hardware = machine(4 * GIB, donors=THREE)
    full = replace(hardware.device("cuda:1"), free_bytes=250 * MIB)
    hardware = replace(hardware, devices=(hardware.devices[0], full, *hardware.devices[2:]))
    result = plan(WHOLE, "#cuda:0;0.5;cuda:1,cuda:2,cpu", hardware)
    assert [result.bytes_on(name) // MIB for name in THREE] == [200, 400, 0]


def test_rounding_goes_to_an_idle_donor_where_those_in_use_are_full() -> None:
    hardware = machine(4 * GIB, donors=THREE)
    full = [replace(hardware.device(name), free_bytes=250 * MIB) for name in ("cuda:1", "cuda:2")]
    hardware = replace(hardware, devices=(hardware.devices[0], *full, hardware.devices[3]))
    result = plan(WHOLE, f"#cuda:0;{500 / 1024};cuda:1,cuda:2,cpu", hardware)
    assert [result.bytes_on(name) // MIB for name in THREE] == [200, 200, 100]


def test_the_room_of_a_donor_in_use_is_counted_with_the_gaps_between_tensors() -> None:
    """12 bytes in tensors of one byte take 12 times 512 bytes: 10 of them have room on the first donor."""
    hardware = machine(4 * GIB, donors=("cuda:1", "cpu"))
    small = replace(hardware.device("cuda:1"), free_bytes=11 * 512)
    hardware = replace(hardware, devices=(hardware.devices[0], small, hardware.devices[2]))
    budget = Budget(order=("cuda:0", "cuda:1", "cpu"), amounts={"cuda:0": 50, "cuda:1": 10, "cpu": 0})
    result = plan(tree_of([(1, 1, 1)] * 20), budget, hardware, policy="interleave")
    assert [result.bytes_on(name) for name in budget.order] == [48, 10, 2]


def test_what_auto_gives_up_may_still_need_an_idle_donor() -> None:
    hardware = machine(GIB, donors=("cuda:1", "cpu"))
    small = replace(hardware.device("cuda:1"), free_bytes=1200 * MIB)
    hardware = replace(hardware, devices=(hardware.devices[0], small, hardware.devices[2]))
    budget = Budget(
        order=("cuda:0", "cuda:1", "cpu"),
        amounts={"cuda:0": 1000 * MIB, "cuda:1": 1000 * MIB, "cpu": 0},
        auto_devices=frozenset({"cuda:0"}),
    )
    result = plan(WHOLE, budget, hardware)
    assert result.bytes_on("cuda:1") == 1000 * MIB
    assert result.bytes_on("cpu") >= 100 * MIB


def test_a_donor_without_room_for_its_share_is_named() -> None:
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 5 * GIB, "cpu": 5 * GIB})
    with pytest.raises(BudgetTooSmallError) as caught:
        plan(TREE, budget, machine(24 * GIB, donor_bytes=4 * GIB))
    assert caught.value.device == "cpu"
    assert caught.value.missing_bytes == GIB


def test_a_budget_for_another_model_is_refused() -> None:
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 5 * GIB, "cpu": 4 * GIB})
    with pytest.raises(InvalidPlanError, match=f"model_bytes={10 * GIB}"):
        plan(TREE, budget, machine(24 * GIB))


def test_a_budget_for_another_compute_device_is_refused() -> None:
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 5 * GIB, "cpu": 5 * GIB}, compute_device="cpu")
    with pytest.raises(InvalidPlanError, match="compute='cpu'"):
        plan(TREE, budget, machine(24 * GIB))


def test_a_budget_with_an_unknown_device_is_refused() -> None:
    budget = Budget(order=("cuda:0", "cuda:7"), amounts={"cuda:0": 5 * GIB, "cuda:7": 5 * GIB})
    with pytest.raises(UnknownDeviceError, match=r"cuda:7.*cuda:0, cpu"):
        plan(TREE, budget, machine(24 * GIB))


def test_errors_of_the_allocation_language_pass_through() -> None:
    with pytest.raises(alloc_spec.AllocSyntaxError):
        plan(TREE, "garbage", machine(24 * GIB))


def test_no_slots_are_refused_even_where_nothing_streams() -> None:
    with pytest.raises(InvalidPlanError, match="0 slots"):
        plan(TREE, "cuda:0,*", machine(24 * GIB), slots=0)


def test_warnings_of_the_budget_arrive_in_the_plan() -> None:
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 5 * GIB, "cpu": 5 * GIB}, warnings=("mind the gap",))
    assert plan(TREE, budget, machine(24 * GIB)).warnings == ("mind the gap",)


def test_a_large_model_is_planned_from_its_sizes_in_no_time() -> None:
    """Auto asks for a dozen plans; with a thousand units that has to stay far from a second each."""
    tree = BlockTree(units=tuple(unit(f"layers.{index}", BLOCK) for index in range(1000)))
    result = plan(tree, "cuda:0,auto;cpu,*", machine(100 * GIB, donor_bytes=512 * GIB))
    assert result.compute_peak_bytes <= 100 * GIB


def test_measured_seconds_must_cover_the_model() -> None:
    with pytest.raises(InvalidPlanError, match=r"blocks\.39"):
        plan(TREE, "cuda:0,5gb;cpu,*", machine(24 * GIB), unit_seconds={f"blocks.{i}": 1.0 for i in range(39)})


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_measured_seconds_must_be_possible(seconds: float) -> None:
    with pytest.raises(InvalidPlanError, match=r"unit_seconds\['blocks\.0'\]"):
        plan(TREE, "cuda:0,5gb;cpu,*", machine(24 * GIB), unit_seconds={f"blocks.{i}": seconds for i in range(40)})


def test_units_that_were_measured_to_take_no_time_are_still_planned() -> None:
    result = plan(TREE, "cuda:0,5gb;cpu,*", machine(24 * GIB), unit_seconds={f"blocks.{i}": 0.0 for i in range(40)})
    assert result.streamed_bytes == 5 * GIB


def test_a_policy_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(InvalidPlanError, match="stripe, interleave"):
        plan(TREE, "cuda:0,5gb;cpu,*", machine(24 * GIB), policy="magic")  # type: ignore[arg-type]


def test_a_donor_whose_bytes_arrive_changed_is_warned_about() -> None:
    hardware = machine(24 * GIB, donors=("cuda:1", "cpu"))
    garbling = replace(hardware, links=tuple(replace(link, verified=link.source == "cpu") for link in hardware.links))
    assert any("cuda:1" in warning for warning in plan(TREE, "cuda:1,2gb;cuda:0,*", garbling).warnings)
    assert plan(TREE, "cpu,2gb;cuda:0,*", garbling).warnings == ()


def test_a_real_model_on_a_real_card() -> None:
    """Flux in fp8 with 4 GB moved away: evenly, so that one slot is a fraction of a block."""
    tree = flux_tree()
    result = plan(tree, "#cuda:0;4;cpu", machine(24 * GIB))
    assert 4 * GIB <= result.streamed_bytes <= 4 * GIB + 16 * MIB
    assert result.slot_bytes <= 104 * MIB
