"""Applying a plan to a model: everything that does not fit is refused before anything is moved."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from placement_models import Stack, example_input, packed, part, plan_for, same_device, stack
from torch import nn

from device_placement import PlacementPlan, PlanMismatchError, TensorHome, place
from device_placement.tensors._inventory import take_inventory

MACHINE = same_device()


def refused(model: nn.Module, plan: PlacementPlan, message: str) -> PlanMismatchError:
    """The error of a placement that must not begin."""
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items() if not tensor.is_meta}
    with pytest.raises(PlanMismatchError, match=message) as caught:
        place(model, plan, backend=MACHINE.make_backend())
    assert places == {name: tensor.data_ptr() for name, tensor in model.state_dict().items() if not tensor.is_meta}
    assert not any(module._forward_pre_hooks for module in model.modules())
    return caught.value


def without(plan: PlacementPlan, name: str) -> PlacementPlan:
    """The plan without the home of one tensor."""
    units = tuple(replace(unit, homes=tuple(home for home in unit.homes if home.name != name)) for unit in plan.units)
    return replace(plan, units=units)


def test_a_model_without_tensors_is_refused() -> None:
    plan = PlacementPlan(compute="cpu", donors=("donor:0",), policy="stripe", slots=2, units=())
    refused(nn.Sequential(nn.ReLU()), plan, "no parameters or buffers; place a model that has weights")


def test_a_model_without_values_is_refused() -> None:
    plan = plan_for(stack(), MACHINE)
    refused(Stack().to("meta"), plan, r"have no values yet: 'blocks.0.norm.weight'.* load the weights")


def test_a_lazy_model_is_refused() -> None:
    plan = PlacementPlan(compute="cpu", donors=("donor:0",), policy="stripe", slots=2, units=())
    with pytest.raises(PlanMismatchError, match="no values yet"):
        place(nn.LazyLinear(3), plan)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_tensors_that_are_no_plain_bytes_are_refused() -> None:
    plan = plan_for(stack(), MACHINE)
    sparse, quantised = stack(), stack()
    sparse.head.register_buffer("mask", torch.eye(4).to_sparse())
    quantised.head.register_buffer("codes", torch.quantize_per_tensor(torch.ones(4), 0.5, 0, torch.qint8))
    for model, name in ((sparse, "head.mask"), (quantised, "head.codes")):
        with pytest.raises(PlanMismatchError, match="sparse or of a quantised dtype") as caught:
            place(model, plan)
        assert caught.value.names == (name,)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_scripted_modules_are_refused() -> None:
    model = stack()
    plan = plan_for(model, MACHINE)
    model.head = torch.jit.trace(model.head, torch.zeros(1, 32))  # type: ignore[no-untyped-call]
    with pytest.raises(PlanMismatchError, match=r"compiled by TorchScript.*'head'; place the original"):
        place(model, plan)


def test_a_tensor_of_the_model_without_a_home_is_named() -> None:
    model = stack()
    error = refused(model, without(plan_for(model, MACHINE), "blocks.1.up.bias"), "no home for tensors of the model")
    assert error.names == ("blocks.1.up.bias",)


def test_a_home_without_a_tensor_is_named() -> None:
    model = stack(4)
    error = refused(model, plan_for(stack(5), MACHINE), "tensors that the model does not have")
    assert error.names[0] == "blocks.4.norm.weight"


def test_another_size_than_planned_is_named_with_both_sizes() -> None:
    model = stack()
    plan = plan_for(model, MACHINE)
    refused(
        model.bfloat16(), plan, re.escape("('blocks.0.norm.weight' has 64 bytes, planned were 128)") + ".*same dtype"
    )


def test_a_unit_whose_module_is_missing_is_named() -> None:
    model = stack()
    plan = plan_for(model, MACHINE)
    units = (replace(plan.units[0], path="blocks.nine"), *plan.units[1:])
    assert refused(model, replace(plan, units=units), "no module").names == ("blocks.nine",)


def test_tied_tensors_have_one_home() -> None:
    model = stack()
    plan = plan_for(model, MACHINE)
    part(model, "blocks.1").up = part(model, "blocks.0.up")
    assert refused(model, plan, "two homes").names == ("blocks.0.up.weight", "blocks.1.up.weight")


def test_a_streamed_tensor_that_is_tied_outside_its_unit_is_refused() -> None:
    model = stack()
    model.head.weight = part(model, "blocks.1.up").weight
    error = refused(model, plan_for(model, MACHINE), "streamed for 'blocks.1' are also used outside it")
    assert error.names == ("head.weight",)


def test_a_part_of_a_streamed_unit_that_is_called_outside_it_is_refused() -> None:
    model = stack()
    model.head = part(model, "blocks.1.up")
    error = refused(model, plan_for(model, MACHINE), "streamed for 'blocks.1' are also used outside it")
    assert error.names == ("head.weight", "head.bias")


def test_a_streamed_unit_may_have_two_paths() -> None:
    model, x = stack(), example_input()
    model.blocks[3] = model.blocks[1]
    expected = model(x)
    plan = plan_for(model, MACHINE)
    assert not plan.units[3].homes
    with place(model, plan, backend=MACHINE.make_backend()) as handle:
        assert torch.equal(model(x), expected)
        assert handle.stats().calls == 5


def test_tensors_that_share_a_part_of_their_memory_are_refused() -> None:
    model = stack()
    memory = torch.randn(48, 32)
    part(model, "blocks.1.up").weight.data = memory[:40]
    model.head.weight.data = memory[16:]
    with pytest.raises(PlanMismatchError, match="share a part of their memory") as caught:
        take_inventory(model)
    assert caught.value.names == ("blocks.1.up.weight", "head.weight")


def test_neighbours_in_one_storage_are_not_tied() -> None:
    model = stack(1)
    memory = torch.randn(2, 64)
    part(model, "blocks.0.up").bias.data = memory[0]
    model.head.bias.data = memory[1, :32]
    inventory = take_inventory(model)
    assert all(len(held.places) == 1 for held in inventory.held)


def test_equal_memory_is_one_tensor_with_two_places() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    inventory = take_inventory(model)
    assert [[place.name for place in held.places] for held in inventory.held] == [
        ["0.weight", "1.weight"],
        ["0.bias"],
        ["1.bias"],
    ]


def test_a_module_at_two_paths_is_known_by_both_names() -> None:
    shared = nn.Linear(3, 3)
    inventory = take_inventory(nn.Sequential(shared, shared))
    assert inventory.by_name["0.weight"] is inventory.by_name["1.weight"]
    assert [held.name for held in inventory.held] == ["0.weight", "0.bias"]


def test_packed_tensors_are_tied_by_their_parts() -> None:
    model = nn.Module()
    model.one = packed(4, 4)
    model.two = model.one
    model.three = packed(4, 4)
    assert [len(held.places) for held in take_inventory(model).held] == [2, 1]


def test_buffers_that_are_not_saved_may_be_unknown_to_the_plan() -> None:
    model = stack()
    plan = plan_for(model, MACHINE)
    model.blocks[0].register_buffer("cache", torch.arange(4), persistent=False)
    with place(model, plan, backend=MACHINE.make_backend()):
        assert part(model, "blocks.0").cache.tolist() == [0, 1, 2, 3]
    model.blocks[0].register_buffer("saved", torch.arange(4))
    refused(model, plan, r"no home for tensors of the model: 'blocks.0.saved'")


def test_streamed_units_inside_streamed_units_need_a_slot_each() -> None:
    model = stack()
    inner = TensorHome(name="blocks.0.up.weight", size_bytes=64 * 32 * 4, device="donor:0")
    plan = without(plan_for(model, MACHINE, slots=1), inner.name)
    nested = replace(plan.units[0], path="blocks.0.up", kind="leaf", homes=(inner,))
    plan = replace(plan, units=(*plan.units, nested))
    error = refused(model, plan, "1 slots are too few .* plan 2 slots")
    assert error.names == ("blocks.0", "blocks.0.up")
    place(model, replace(plan, slots=2), backend=MACHINE.make_backend()).remove()
