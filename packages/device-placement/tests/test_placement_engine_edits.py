"""The host changes the model while it is placed: what is noticed, what is repaired, what is refused."""

from __future__ import annotations

import copy
import io
import pickle
import weakref

import pytest
import torch
from placement_models import (
    MACHINES,
    Machine,
    Stack,
    emulated,
    example_input,
    machine_named,
    packed,
    part,
    plan_for,
    stack,
)
from torch import Tensor, nn

from device_placement import HandleInvalidatedError, HandleStateError, PlacedModel, place


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


def placed(model: nn.Module, machine: Machine) -> PlacedModel:
    return place(model, plan_for(model, machine), backend=machine.make_backend())


def lora(model: nn.Module) -> None:
    """Merge a low-rank change into every weight, in place."""
    generator = torch.Generator().manual_seed(7)
    for _, weight in sorted(model.named_parameters()):
        if weight.ndim == 2:
            down = torch.randn(2, weight.shape[1], generator=generator)
            up = torch.randn(weight.shape[0], 2, generator=generator)
            with torch.no_grad():
                weight.add_((up @ down).to(weight.device), alpha=0.1)


def test_a_lora_merged_in_place_reaches_the_next_forward(machine: Machine) -> None:
    model, x = stack(), example_input()
    unplaced = stack()
    with placed(model, machine) as handle:
        machine.run(model, x)
        for _ in range(2):
            lora(model)
            lora(unplaced)
            assert torch.equal(machine.run(model, x), unplaced(x))
            assert torch.equal(machine.run(model, x), unplaced(x))
        assert handle.stats().refetches == 10


def test_an_edit_in_inference_mode_is_noticed(machine: Machine) -> None:
    model, x = stack(), example_input()
    with torch.inference_mode(), placed(model, machine):
        before = machine.run(model, x)
        part(model, "blocks.0.up").weight.zero_()
        assert not torch.equal(machine.run(model, x), before)
        part(model, "blocks.1.up").weight.zero_()
    model.to("cpu")
    changed = model(x)
    with placed(model, machine):
        assert torch.equal(machine.run(model, x), changed)


def test_an_edit_through_data_is_seen_after_refresh(machine: Machine) -> None:
    model, x = stack(), example_input()
    unplaced = stack()
    with placed(model, machine) as handle:
        machine.run(model, x)
        for each in (model, unplaced):
            for parameter in each.parameters():
                parameter.data.mul_(0.5)
        handle.refresh()
        assert torch.equal(machine.run(model, x), unplaced(x))


def test_edits_of_any_kind_during_a_pause_are_seen(machine: Machine) -> None:
    model, x = stack(), example_input()
    unplaced = stack()
    with placed(model, machine) as handle:
        machine.run(model, x)
        with handle.pause():
            for each in (model, unplaced):
                for parameter in each.parameters():
                    parameter.data.mul_(0.5)
                lora(each)
        assert torch.equal(machine.run(model, x), unplaced(x))


def test_load_state_dict_reaches_the_next_forward(machine: Machine) -> None:
    model, x = stack(), example_input()
    other = stack(seed=3)
    with placed(model, machine):
        machine.run(model, x)
        model.load_state_dict(other.state_dict())
        assert torch.equal(machine.run(model, x), other(x))


@pytest.mark.parametrize("keep_vars", [False, True])
def test_load_state_dict_with_assign_brings_the_new_tensors_home(machine: Machine, keep_vars: bool) -> None:
    model, x = stack(), example_input()
    other = stack(seed=3)
    backend = machine.make_backend()
    plan = plan_for(model, machine)
    with place(model, plan, backend=backend):
        machine.run(model, x)
        model.load_state_dict(copy.deepcopy(other).state_dict(keep_vars=keep_vars), assign=True)
        for _ in range(2):
            assert torch.equal(machine.run(model, x), other(x))
        tensors = dict(model.named_parameters())
        for unit in plan.units:
            for home in unit.homes:
                assert tensors[home.name].device == backend.device(home.device)


def test_a_parameter_replaced_by_another_at_home_moves_in(machine: Machine) -> None:
    model, x = stack(), example_input()
    unplaced = stack()
    with placed(model, machine) as handle:
        machine.run(model, x)
        for each in (model, unplaced):
            for path in ("blocks.0.up", "blocks.3.down", "head"):
                linear = part(each, path)
                linear.weight = nn.Parameter(linear.weight.detach() * 2, requires_grad=False)
        for _ in range(2):
            assert torch.equal(machine.run(model, x), unplaced(x))
        # The next edit of what moved in counts as well.
        for each in (model, unplaced):
            with torch.no_grad():
                part(each, "blocks.0.up").weight.add_(1)
        assert torch.equal(machine.run(model, x), unplaced(x))
        assert handle.stats().refetches == 3


def test_a_parameter_born_in_inference_mode_moves_in(machine: Machine) -> None:
    model, x = stack(), example_input()
    with placed(model, machine), torch.inference_mode():
        machine.run(model, x)
        linear = part(model, "blocks.0.up")
        linear.weight = nn.Parameter(linear.weight * 0, requires_grad=False)
        first, second = machine.run(model, x), machine.run(model, x)
    assert torch.equal(first, second)
    unplaced = stack()
    part(unplaced, "blocks.0.up").weight.data.zero_()
    assert torch.equal(first, unplaced(x))


def test_state_dicts_are_those_of_the_unplaced_model(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = copy.deepcopy(model.state_dict())
    with placed(model, machine):
        machine.run(model, x)
        state = model.state_dict()
        assert list(state) == list(expected)
        for name, value in expected.items():
            assert torch.equal(state[name].cpu(), value)
            assert state[name].stride() == value.stride()


def test_a_state_dict_survives_a_file(machine: Machine) -> None:
    model = stack()
    expected = copy.deepcopy(model.state_dict())
    with placed(model, machine):
        file = io.BytesIO()
        torch.save({name: value.cpu() for name, value in model.state_dict().items()}, file)
    loaded = torch.load(io.BytesIO(file.getvalue()))
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_safetensors_accepts_the_views_of_a_placed_model() -> None:
    safetensors_torch = pytest.importorskip("safetensors.torch")
    machine = emulated()
    model = stack()
    with placed(model, machine):
        loaded = safetensors_torch.load(safetensors_torch.save(model.state_dict()))
    assert all(torch.equal(loaded[name], value) for name, value in stack().state_dict().items())


# ------------------------------------------------------------------------------------------------- moved by others


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_model_converted_behind_our_back_is_refused_not_run(machine: Machine, dtype: torch.dtype) -> None:
    model, x = stack(), example_input()
    with placed(model, machine) as handle:
        machine.run(model, x)
        model.to(dtype)
        assert_refused(model, machine, x)
        with pytest.raises(HandleInvalidatedError, match="another shape or dtype"):
            handle.refresh()
        model.to(torch.float32)
        handle.refresh()
        machine.run(model, x)


def assert_refused(model: nn.Module, machine: Machine, x: Tensor) -> None:
    """A pass raises, again and again, and names tensors of the model."""
    for _ in range(2):
        with pytest.raises(HandleInvalidatedError, match=r"call refresh\(\) on its PlacedModel") as caught:
            machine.run(model, x)
        assert set(caught.value.names) <= {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("device", ["cpu", "sim:0", "sim:1", "sim:2"])
def test_a_model_moved_behind_our_back_is_refused_not_run(device: str, request: pytest.FixtureRequest) -> None:
    machine = machine_named("accelerator", request)
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        machine.run(model, x)
        model.to(device)
        assert_refused(model, machine, x)
        handle.refresh()
        assert torch.equal(machine.run(model, x), expected)


def test_a_piece_of_a_unit_moved_behind_our_back_is_refused_within_a_few_forwards(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        machine.run(model, x)
        part(model, "blocks.1.up").double()
        with pytest.raises(HandleInvalidatedError, match=r"'blocks\.1\.up\.weight', 'blocks\.1\.up\.bias'"):
            for _ in range(3):
                assert torch.equal(machine.run(model, x), expected)
        part(model, "blocks.1.up").float()
        handle.refresh()
        assert torch.equal(machine.run(model, x), expected)


@pytest.mark.parametrize("path", ["blocks.1", "head", "blocks"])
def test_a_part_moved_behind_our_back_is_refused_not_run(machine: Machine, path: str) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        machine.run(model, x)
        part(model, path).double()
        with pytest.raises(HandleInvalidatedError):
            machine.run(model, x)
        part(model, path).float()
        handle.refresh()
        assert torch.equal(machine.run(model, x), expected)


def test_a_deleted_parameter_is_refused(machine: Machine) -> None:
    model, x = stack(), example_input()
    with placed(model, machine) as handle:
        linear = part(model, "blocks.1.up")
        weight = linear.weight
        del linear.weight
        with pytest.raises(HandleInvalidatedError, match=r"'blocks\.1\.up\.weight'"):
            machine.run(model, x)
        with pytest.raises(HandleInvalidatedError, match="was deleted"):
            handle.refresh()
        linear.weight = weight
        assert torch.equal(machine.run(model, x), stack()(x))


def test_refresh_refuses_another_shape(machine: Machine) -> None:
    model = stack()
    with placed(model, machine) as handle:
        part(model, "blocks.1.up").weight = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        with pytest.raises(HandleInvalidatedError, match=r"blocks\.1\.up\.weight.*another shape or dtype"):
            handle.refresh()


def test_tensors_moved_during_a_pause_are_refused_at_its_end(machine: Machine) -> None:
    model, x = stack(), example_input()
    with placed(model, machine) as handle:
        handle.pause()
        part(model, "blocks.2").double()
        with pytest.raises(HandleInvalidatedError):
            handle.resume()
        part(model, "blocks.2").float()
        handle.refresh()
        handle.resume()
        assert torch.equal(machine.run(model, x), stack()(x))


# ---------------------------------------------------------------------------------------------------------- copies


def test_a_deep_copy_is_an_independent_model(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        machine.run(model, x)
        duplicate = copy.deepcopy(model)
        assert all(
            torch.equal(one.cpu(), other.cpu())
            for one, other in zip(model.parameters(), duplicate.parameters(), strict=True)
        )
        calls = handle.stats().calls
        duplicate.to(machine.device)
        with torch.no_grad():
            part(duplicate, "head").bias.add_(1)
        assert torch.equal(machine.run(duplicate, x), expected_with_bias(x))
        assert torch.equal(machine.run(model, x), expected)
        assert handle.stats().calls == calls + 5
    hooks = [module for module in duplicate.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert {type(module) for module in hooks} <= {nn.LayerNorm, nn.Linear}


def expected_with_bias(x: Tensor) -> Tensor:
    """The result of a stack whose head adds one."""
    model = stack()
    model.head.bias.data.add_(1)
    return model(x)  # type: ignore[no-any-return]


def test_a_deep_copy_can_be_placed_beside_the_original(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        duplicate = copy.deepcopy(model)
        with placed(duplicate, machine) as other:
            for _ in range(2):
                assert torch.equal(machine.run(duplicate, x), expected)
                assert torch.equal(machine.run(model, x), expected)
            assert handle.stats().calls == other.stats().calls == 10
        duplicate.load_state_dict(stack(seed=2).state_dict())


def test_a_deep_copy_on_several_devices_says_why_it_cannot_run(request: pytest.FixtureRequest) -> None:
    machine = machine_named("accelerator", request)
    model, x = stack(), example_input()
    with placed(model, machine):
        duplicate = copy.deepcopy(model)
    with pytest.raises(HandleStateError, match=r"this Stack is a copy .* cpu, sim:0, sim:1; place\(\)"):
        machine.run(duplicate, x)


def test_a_pickled_model_is_an_ordinary_one() -> None:
    machine = emulated()
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine):
        duplicate: Stack = pickle.loads(pickle.dumps(model))
    assert torch.equal(duplicate(x), expected)


# ----------------------------------------------------------------------------------- tensors that others hold on to


def test_parameters_that_somebody_refers_to_weakly_are_watched_one_by_one(machine: Machine) -> None:
    model, x = stack(), example_input()
    unplaced = stack()
    # A compiled model, for one, holds such references; torch then exchanges the memory, not the tensor.
    references = [weakref.ref(parameter) for parameter in model.parameters()]
    with placed(model, machine) as handle:
        machine.run(model, x)
        lora(model)
        lora(unplaced)
        for _ in range(2):
            assert torch.equal(machine.run(model, x), unplaced(x))
        assert handle.stats().refetches == 5
        part(model, "blocks.1").double()
        assert_refused(model, machine, x)
        part(model, "blocks.1").float()
        handle.refresh()
        assert torch.equal(machine.run(model, x), unplaced(x))
    if machine.device.type == "cpu":
        assert [reference() for reference in references] == list(model.parameters())


def test_packed_parameters_that_somebody_refers_to_weakly_are_replaced(machine: Machine) -> None:
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Module()])
    block = part(model, "blocks.0")
    block.weight = packed(4, 4)
    reference = weakref.ref(block.weight)
    expected = block.weight.dense()
    with placed(model, machine):
        assert torch.equal(block.weight.dense().cpu(), expected)
        assert reference() is not block.weight


def test_a_reload_is_noticed_when_only_units_are_called(machine: Machine) -> None:
    model, x = stack(), example_input()
    other = stack(seed=3)
    with placed(model, machine):
        machine.run(model, x)
        model.load_state_dict(stack(seed=3).state_dict(), assign=True)
        block, reference = part(model, "blocks.2"), part(other, "blocks.2")
        assert torch.equal(machine.run(block, x), reference(x))
        assert torch.equal(machine.run(model, x), other(x))
