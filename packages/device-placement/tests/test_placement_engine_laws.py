"""Whatever is done to a placed model, in whatever order, it computes what the unplaced one does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placement_models import Machine, Stack, emulated, example_input, plan_for, same_device, stack
from torch import nn

from device_placement import HandleInvalidatedError, PlacedModel, PlacementPlan, place

BLOCKS = 4
X = example_input(8)

orders = st.lists(st.integers(0, BLOCKS - 1), max_size=7)


def small() -> Stack:
    return stack(BLOCKS, width=8)


def edit(model: nn.Module, index: int) -> None:
    """Another value in place."""
    with torch.no_grad():
        model.get_submodule(f"blocks.{index}.up").weight.mul_(0.75)  # type: ignore[operator]


def replace_one(model: nn.Module, index: int) -> None:
    """Another object on the same device."""
    owner = model.get_submodule(f"blocks.{index}.down")
    assert isinstance(owner, nn.Linear)
    owner.bias = nn.Parameter(owner.bias.detach().clone() + 0.5, requires_grad=False)


def reload(model: nn.Module, index: int) -> None:
    """A state dict, assigned or copied."""
    state = {name: value.detach().clone() * 0.9 for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=bool(index % 2))


def edit_unseen(model: nn.Module, index: int) -> None:
    """Through `.data`, which shows nowhere; the handle has to be told."""
    model.get_submodule(f"blocks.{index}.up").bias.data.add_(1.0)  # type: ignore[operator]


CHANGES: list[Callable[[nn.Module, int], None]] = [edit, replace_one, reload, edit_unseen]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[str, object]]:
    """Passes in any order of calls, changes of the model, and uses of the handle."""
    kinds = st.sampled_from(["run", "run", "run", "change", "resize", "pause", "refresh", "block"])
    result: list[tuple[str, object]] = []
    for kind in draw(st.lists(kinds, min_size=2, max_size=9)):
        value: object = None
        if kind == "run":
            value = draw(orders)
        elif kind == "change":
            value = draw(st.sampled_from(CHANGES)), draw(st.integers(0, BLOCKS - 1))
        elif kind == "resize":
            value = draw(st.integers(1, 5))
        elif kind == "block":
            value = draw(st.integers(0, BLOCKS - 1))
        result.append((kind, value))
    return result


@st.composite
def homes(draw: st.DrawFn) -> dict[str, str | None]:
    """A home for every tensor of the blocks: two donors, or the compute device."""
    names = [name for name, _ in small().named_parameters() if name.startswith("blocks")]
    return {name: draw(st.sampled_from(["emulated:1", "emulated:2", None])) for name in names}


def take(step: tuple[str, object], model: Stack, unplaced: Stack, machine: Machine, handle: PlacedModel) -> None:
    kind, value = step
    if kind == "run":
        assert isinstance(value, list)
        model.order = unplaced.order = value
        assert torch.equal(machine.run(model, X), unplaced(X))
    elif kind == "block":
        path = f"blocks.{value}"
        assert torch.equal(machine.run(model.get_submodule(path), X), unplaced.get_submodule(path)(X))
    elif kind == "change":
        assert isinstance(value, tuple)
        change, index = value
        if change is edit_unseen:
            with handle.pause():
                change(model, index)
        else:
            change(model, index)
        change(unplaced, index)
    elif kind == "resize":
        assert isinstance(value, int)
        handle.resize(slots=value)
    elif kind == "pause":
        handle.pause()
        handle.resume()
    else:
        handle.refresh()


@pytest.mark.parametrize("kind", ["emulated", "same_device"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(placed_homes=homes(), slots=st.integers(1, 4), todo=steps())
def test_any_use_of_a_placed_model_gives_the_unplaced_results(
    kind: str, placed_homes: dict[str, str | None], slots: int, todo: list[tuple[str, object]]
) -> None:
    machine = emulated(2) if kind == "emulated" else same_device()
    renamed = {"emulated:1": machine.donors[0], "emulated:2": machine.donors[1]}
    model, unplaced = small(), small()
    plan = plan_for(model, machine, slots=slots, home=lambda name: renamed.get(placed_homes.get(name) or ""))
    with place(model, plan, backend=machine.make_backend()) as handle, torch.no_grad():
        for step in todo:
            take(step, model, unplaced, machine, handle)
        stats = handle.stats()
        assert stats.copied_bytes.keys() <= set(machine.donors)
        if kind == "same_device":
            assert stats.copies == 0
    model.order = unplaced.order = list(range(BLOCKS))
    assert torch.equal(model(X), unplaced(X))
    state, wanted = model.state_dict(), unplaced.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in state.items())


@settings(max_examples=40, deadline=None)
@given(order=orders.filter(lambda order: len(set(order)) > 1), slots=st.integers(1, 4))
def test_a_repeated_pass_is_learnt_and_copies_no_more_than_it_must(order: list[int], slots: int) -> None:
    machine = emulated()
    model = small()
    model.order = order
    with place(model, plan_for(model, machine, slots=slots), backend=machine.make_backend()) as handle:
        for _ in range(3):
            machine.run(model, X)
        before = handle.stats()
        for _ in range(4):
            machine.run(model, X)
        after = handle.stats()
    assert after.surprises == before.surprises
    copies = after.copies - before.copies
    changes = sum(one != other for one, other in zip(order, [*order[1:], order[0]], strict=True))
    assert copies <= 4 * changes, "a unit that is called again at once is still there"
    if len(set(order)) <= slots:
        assert copies == 0
    else:
        assert copies >= 4 * (len(set(order)) - slots), "what does not fit into the slots has to be fetched"


@settings(max_examples=30, deadline=None)
@given(placed_homes=homes(), slots=st.integers(1, 3))
def test_bytes_are_held_where_the_plan_says_with_every_tensor_aligned(
    placed_homes: dict[str, str | None], slots: int
) -> None:
    machine = emulated(2)
    model = small()
    plan = plan_for(model, machine, slots=slots, home=placed_homes.get)
    with place(model, plan, backend=machine.make_backend()) as handle:
        held = handle.stats().held_bytes
        for donor in machine.donors:
            expected = sum(
                -(-home.size_bytes // 512) * 512 for unit in plan.units for home in unit.homes if home.device == donor
            )
            assert held[donor] == expected
        assert held[machine.compute] == plan.compute_peak_bytes
        assert PlacementPlan.from_json(handle.plan.to_json()) == plan


@settings(max_examples=25, deadline=None)
@given(index=st.integers(0, BLOCKS - 1), dtype=st.sampled_from([torch.float64, torch.bfloat16]), order=orders)
def test_a_block_converted_behind_its_back_never_gives_a_result(
    index: int, dtype: torch.dtype, order: list[int]
) -> None:
    machine = emulated()
    model = small()
    handle = place(model, plan_for(model, machine), backend=machine.make_backend())
    model.order = order
    machine.run(model, X)
    model.get_submodule(f"blocks.{index}").to(dtype)
    if index in order:
        with pytest.raises(HandleInvalidatedError):
            machine.run(model, X)
    else:
        machine.run(model, X)
    handle.remove()
