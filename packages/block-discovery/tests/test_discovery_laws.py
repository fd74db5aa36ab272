"""Laws that hold for every model: nothing is lost, nothing is charged twice, and the cut depends on structure alone."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from discovery_testing import Chain, blocks, modules_with_tensors, sizes_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from block_discovery import BlockTree, InvalidFractionError, discover, discover_names

FRACTIONS = st.floats(min_value=0.01, max_value=1.0)

laws = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


def all_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@laws
@given(model=modules_with_tensors, fraction=FRACTIONS)
def test_every_tensor_is_charged_exactly_once(model: nn.Module, fraction: float) -> None:
    charged = [tensor.name for unit in discover(model, max_unit_fraction=fraction).units for tensor in unit.tensors]
    assert sorted(charged) == sorted(all_tensors(model))


@laws
@given(model=modules_with_tensors, fraction=FRACTIONS)
def test_the_units_sum_to_the_bytes_of_the_model(model: nn.Module, fraction: float) -> None:
    tree = discover(model, max_unit_fraction=fraction)
    assert tree.size_bytes == sum(tensor.nbytes for tensor in all_tensors(model).values())


@laws
@given(model=modules_with_tensors, fraction=FRACTIONS)
def test_a_tree_survives_json(model: nn.Module, fraction: float) -> None:
    tree = discover(model, max_unit_fraction=fraction)
    assert BlockTree.from_json(tree.to_json()) == tree
    assert BlockTree.from_json(tree.to_json(indent=2)) == tree
    assert json.loads(tree.to_json())["format"] == "block-discovery/tree"


@laws
@given(model=modules_with_tensors)
def test_units_stand_in_the_order_of_the_model(model: nn.Module) -> None:
    position = {path: index for index, (path, _) in enumerate(model.named_modules())}
    order = [position[unit.path] for unit in discover(model).units if unit.kind != "rest"]
    assert order == sorted(order)


@laws
@given(model=modules_with_tensors)
def test_tensors_lie_inside_their_unit(model: nn.Module) -> None:
    for unit in discover(model).units:
        assert unit.kind == "rest" or all(tensor.name.startswith(f"{unit.path}.") for tensor in unit.tensors)


@laws
@given(model=modules_with_tensors)
def test_a_unit_is_a_module_that_can_be_called(model: nn.Module) -> None:
    for unit in discover(model).units:
        if unit.kind != "rest":
            module = model.get_submodule(unit.path)
            assert type(module).__name__ == unit.class_name
            assert not isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList))


@laws
@given(model=modules_with_tensors)
def test_the_meta_device_gives_the_same_tree(model: nn.Module) -> None:
    assert discover(copy.deepcopy(model).to("meta")) == discover(model)


@laws
@given(model=modules_with_tensors)
def test_discovery_changes_nothing(model: nn.Module) -> None:
    before = {name: (id(tensor), tensor.detach().clone()) for name, tensor in all_tensors(model).items()}
    discover(model)
    after = all_tensors(model)
    assert before.keys() == after.keys()
    assert all(id(after[name]) == key and torch.equal(after[name], value) for name, (key, value) in before.items())


@laws
@given(model=modules_with_tensors, fraction=FRACTIONS)
def test_names_alone_charge_every_tensor_of_the_state_dict_once(model: nn.Module, fraction: float) -> None:
    state = model.state_dict()
    if not state:
        return
    tree = discover_names(sizes_of(state), max_unit_fraction=fraction)
    charged = [tensor.name for unit in tree.units for tensor in unit.tensors]
    assert sorted(charged) == sorted(state)
    assert tree.size_bytes == sum(tensor.nbytes for tensor in state.values())
    assert tree.source == "names"


@laws
@given(model=modules_with_tensors, data=st.data())
def test_sharing_modules_and_parameters_charges_each_of_them_once(model: nn.Module, data: st.DataObject) -> None:
    outer = Chain(first=model, layers=blocks(3))
    modules = [module for module in outer.modules() if not isinstance(module, (nn.ParameterList, nn.ModuleList))]
    any_module = st.sampled_from(modules)
    for number in range(data.draw(st.integers(1, 3), label="shared modules")):
        # Nothing forbids a module inside itself, so the laws must hold there too.
        data.draw(any_module, label="owner").add_module(f"shared_{number}", data.draw(any_module, label="shared"))
    weighted = [module for module in modules if isinstance(module, nn.Linear)]
    one, other = data.draw(st.tuples(*[st.sampled_from(weighted)] * 2), label="tied")
    other.weight = one.weight
    tree = discover(outer)
    charged = [tensor.name for unit in tree.units for tensor in unit.tensors]
    assert sorted(charged) == sorted(all_tensors(outer))
    assert tree.size_bytes == sum(tensor.nbytes for tensor in all_tensors(outer).values())
    resident = {tensor.name for unit in tree.units if unit.kind == "rest" for tensor in unit.tensors}
    assert all(len(resident & set(group)) == 1 for group in tree.tied)


@given(count=st.integers(2, 40), width=st.integers(4, 12))
@settings(max_examples=25, deadline=None)
def test_a_stack_of_equal_blocks_is_cut_into_its_blocks(count: int, width: int) -> None:
    model = Chain(stem=nn.Linear(width, width), blocks=blocks(count, width), head=nn.Linear(width, width))
    tree = discover(model)
    assert [unit.path for unit in tree.units if unit.kind == "block"] == [f"blocks.{index}" for index in range(count)]
    assert {unit.group for unit in tree.units if unit.kind == "block"} == {"blocks"}
    from_names = discover_names(sizes_of(model.state_dict()))
    assert from_names.units == tuple(replace(unit, class_name="") for unit in tree.units)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(InvalidFractionError, match=r"max_unit_fraction: .* is not a share.*; use a number above 0"):
        discover(nn.Sequential(nn.Linear(2, 2)), max_unit_fraction=fraction)
    with pytest.raises(InvalidFractionError):
        discover_names({"a.weight": ((2,), "F32")}, max_unit_fraction=fraction)
