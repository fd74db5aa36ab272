"""Laws that every plan obeys, whatever the model, the budget and the policy."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st
from placement_trees import GIB, machine, movable_bytes, trees

from alloc_spec import Budget, DeviceMemory, parse, resolve
from block_discovery import BlockTree
from device_placement import BudgetTooSmallError, PlacementPlan, Policy, plan

DONORS = ("cuda:1", "cpu", "cuda:2")
POLICIES: list[Policy] = ["stripe", "interleave", "contiguous", "legacy_tail"]


@st.composite
def requests(draw: st.DrawFn) -> tuple[BlockTree, Budget, Policy, int]:
    """A tree and a budget of 1 to 4 devices, the compute device anywhere among them with room for the rest."""
    tree = draw(trees())
    donors = DONORS[: draw(st.integers(1, 3))]
    order = tuple(draw(st.permutations(["cuda:0", *donors])))
    movable = movable_bytes(tree)
    cuts = sorted(draw(st.lists(st.integers(0, movable), min_size=len(donors), max_size=len(donors))))
    parts = [end - start for start, end in zip([0, *cuts], [*cuts, movable], strict=True)]
    amounts = dict(zip(["cuda:0", *donors], parts, strict=True))
    amounts["cuda:0"] += tree.size_bytes - movable
    budget = Budget(order=order, amounts=amounts, compute_device="cuda:0")
    return tree, budget, draw(st.sampled_from(POLICIES)), draw(st.integers(1, 4))


def planned(tree: BlockTree, budget: Budget, policy: Policy, slots: int = 2) -> PlacementPlan:
    return plan(tree, budget, machine(GIB, donors=DONORS), policy=policy, slots=slots)


@given(requests())
def test_every_tensor_has_exactly_one_home_and_no_byte_is_lost(request: tuple[BlockTree, Budget, Policy, int]) -> None:
    tree, budget, policy, slots = request
    result = planned(tree, budget, policy, slots)
    planned_tensors = [(home.name, home.size_bytes) for unit in result.units for home in unit.homes]
    assert planned_tensors == [(tensor.name, tensor.size_bytes) for unit in tree.units for tensor in unit.tensors]
    assert sum(result.bytes_on(device) for device in ("cuda:0", *DONORS)) == tree.size_bytes


@given(requests())
def test_the_compute_device_never_holds_more_than_its_amount(request: tuple[BlockTree, Budget, Policy, int]) -> None:
    tree, budget, policy, slots = request
    result = planned(tree, budget, policy, slots)
    kept = tree.size_bytes - movable_bytes(tree)
    assert result.bytes_on("cuda:0") <= max(kept, budget.bytes_for("cuda:0"))


@given(requests())
def test_at_least_what_was_asked_moves_and_at_most_one_block_more(
    request: tuple[BlockTree, Budget, Policy, int],
) -> None:
    tree, budget, policy, slots = request
    result = planned(tree, budget, policy, slots)
    asked = sum(budget.bytes_for(donor) for donor in DONORS)
    largest = max(unit.size_bytes for unit in tree.units if unit.kind != "rest")
    assert asked <= result.streamed_bytes <= asked + largest


@given(requests())
def test_every_donor_but_one_stays_within_its_amount(request: tuple[BlockTree, Budget, Policy, int]) -> None:
    tree, budget, policy, slots = request
    result = planned(tree, budget, policy, slots)
    beyond = [donor for donor in result.donors if result.bytes_on(donor) > budget.bytes_for(donor)]
    assert len(beyond) <= 1


@given(requests())
def test_donors_follow_each_other_along_the_model_as_in_the_allocation(
    request: tuple[BlockTree, Budget, Policy, int],
) -> None:
    tree, budget, policy, slots = request
    result = planned(tree, budget, policy, slots)
    order = sorted(budget.order) if policy == "legacy_tail" else list(budget.order)
    streamed = [
        order.index(home.device)
        for unit in result.units
        for home in unit.homes
        if home.device != "cuda:0" and home.size_bytes
    ]
    assert streamed == sorted(streamed)


@given(requests())
def test_consecutive_policies_give_every_device_one_stretch_of_the_model(
    request: tuple[BlockTree, Budget, Policy, int],
) -> None:
    tree, budget, _, slots = request
    for policy, order in (("contiguous", list(budget.order)), ("legacy_tail", sorted(budget.order))):
        result = planned(tree, budget, policy, slots)  # type: ignore[arg-type]
        homes = [order.index(home.device) for unit in result.units if unit.kind != "rest" for home in unit.homes]
        assert homes == sorted(homes)


@given(requests())
def test_whole_unit_policies_never_split_a_unit_between_compute_and_donors(
    request: tuple[BlockTree, Budget, Policy, int],
) -> None:
    tree, budget, _, slots = request
    for policy in ("interleave", "legacy_tail"):
        result = planned(tree, budget, policy, slots)
        for unit in result.units:
            if unit.kind != "rest":
                assert unit.bytes_on("cuda:0") in (0, unit.size_bytes)


@given(requests())
def test_planning_twice_gives_the_same_plan(request: tuple[BlockTree, Budget, Policy, int]) -> None:
    tree, budget, policy, slots = request
    assert planned(tree, budget, policy, slots) == planned(tree, budget, policy, slots)


TEXTS = ["cuda:0,40%;cuda:1,*;cpu,20%", "cuda:0,auto;cuda:1,*", "cuda:1,1kb;cuda:0,*", "cpu,30%;cuda:1,*;cuda:0,auto"]


@given(trees(), st.sampled_from(TEXTS), st.sampled_from(POLICIES))
def test_a_budget_resolved_beforehand_gives_the_plan_of_its_text(tree: BlockTree, text: str, policy: Policy) -> None:
    assume(tree.size_bytes > 0)
    hardware = machine(GIB, donors=DONORS)
    memory = {
        device.name: DeviceMemory(total=device.total_bytes, free=device.free_bytes, reserve=device.reserve_bytes)
        for device in hardware.devices
    }
    budget = resolve(parse(text), model_bytes=tree.size_bytes, devices=memory, compute_device="cuda:0")

    def outcome(allocation: Budget | str) -> PlacementPlan | str:
        try:
            return plan(tree, allocation, hardware, policy=policy)
        except BudgetTooSmallError as error:
            return str(error).splitlines()[0]  # what follows is the text changed, or one made for the budget

    assert outcome(budget) == outcome(text)


@given(requests())
def test_a_plan_survives_json(request: tuple[BlockTree, Budget, Policy, int]) -> None:
    result = planned(*request)
    assert PlacementPlan.from_json(result.to_json()) == result


@given(trees(), st.sampled_from([4, 64, 4096]), st.sampled_from(POLICIES), st.floats(0, 1))
def test_a_model_scaled_up_is_placed_in_the_same_way(
    tree: BlockTree, factor: int, policy: Policy, resident: float
) -> None:
    kept = tree.size_bytes - movable_bytes(tree) + int(movable_bytes(tree) * resident)

    def homes(scale: int) -> list[list[str]]:
        amounts = {"cuda:0": kept * scale, "cpu": (tree.size_bytes - kept) * scale}
        budget = Budget(order=("cuda:0", "cpu"), amounts=amounts)
        result = plan(scaled(tree, scale), budget, machine(1 << 50, donor_bytes=1 << 50), policy=policy)
        return [[home.device for home in unit.homes] for unit in result.units]

    assert homes(1) == homes(factor)


def scaled(tree: BlockTree, factor: int) -> BlockTree:
    """The same tree with every tensor `factor` times as large."""
    return replace(
        tree,
        units=tuple(
            replace(unit, tensors=tuple(replace(t, size_bytes=t.size_bytes * factor) for t in unit.tensors))
            for unit in tree.units
        ),
    )
