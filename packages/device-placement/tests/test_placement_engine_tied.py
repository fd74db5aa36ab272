"""Tensors that several entries of one unit share: edited as one, moved as one, and refused when they part."""

from __future__ import annotations

import pytest
import torch
from placement_models import (
    MACHINES,
    WIDTH,
    Block,
    Machine,
    example_input,
    machine_named,
    part,
    plan_for,
    stack,
)
from torch import Tensor, nn

from device_placement import HandleInvalidatedError, PlacedModel, place


class Twins(Block):
    """Reads one weight through two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(WIDTH, 2 * WIDTH)
        self.other.weight = self.up.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(torch.relu(self.up(x)) - torch.relu(self.other(x)))
        return x + y


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


def twins() -> nn.Module:
    torch.manual_seed(3)
    return stack([Twins() for _ in range(4)])


def placed(model: nn.Module, machine: Machine) -> PlacedModel:
    return place(model, plan_for(model, machine), backend=machine.make_backend())


def weights_of(model: nn.Module, index: int = 1) -> tuple[nn.Parameter, nn.Parameter]:
    return part(model, f"blocks.{index}.up").weight, part(model, f"blocks.{index}.other").weight


def new_weight(like: Tensor) -> nn.Parameter:
    values = torch.randn(like.shape, generator=torch.Generator().manual_seed(5))
    return nn.Parameter(values.to(like.device), requires_grad=False)


def test_they_are_streamed_once_and_stay_one(machine: Machine) -> None:
    model, x = twins(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        first, second = weights_of(model)
        assert first is second
        streamed = sum(size for name, size in handle.stats().held_bytes.items() if name in machine.donors)
        alone = sum(tensor.numel() * 4 for tensor in model.get_submodule("blocks").parameters())
        assert streamed == pytest.approx(alone, rel=0.2)


def test_an_edit_in_place_reaches_both(machine: Machine) -> None:
    model, unplaced, x = twins(), twins(), example_input()
    with placed(model, machine):
        machine.run(model, x)
        for either in (model, unplaced):
            with torch.no_grad():
                weights_of(either)[1].mul_(0.5)
        assert torch.equal(machine.run(model, x), unplaced(x))


def test_one_that_replaces_both_moves_in(machine: Machine) -> None:
    model, unplaced, x = twins(), twins(), example_input()
    with placed(model, machine):
        machine.run(model, x)
        for either in (model, unplaced):
            weight = new_weight(weights_of(either)[0])
            part(either, "blocks.1.up").weight = part(either, "blocks.1.other").weight = weight
        for _ in range(2):
            assert torch.equal(machine.run(model, x), unplaced(x))


@pytest.mark.parametrize("name", ["up", "other"])
def test_one_that_replaces_half_of_them_is_refused_not_spread(machine: Machine, name: str) -> None:
    """Unplaced, the other half would keep its values; in one home it cannot."""
    model, x = twins(), example_input()
    handle = placed(model, machine)
    machine.run(model, x)
    part(model, f"blocks.1.{name}").weight = new_weight(weights_of(model)[0])
    for call in (lambda: machine.run(model, x), handle.refresh):
        with pytest.raises(HandleInvalidatedError, match=r"'blocks\.1\.up\.weight' .*tied.*remove\(\)"):
            call()
    handle.remove(to="cpu")
    unplaced = twins()
    part(unplaced, f"blocks.1.{name}").weight = new_weight(weights_of(unplaced)[0])
    assert torch.equal(model(x), unplaced(x))


@pytest.mark.parametrize("same", [True, False])
def test_a_state_dict_assigned_has_to_agree_about_both(machine: Machine, same: bool) -> None:
    model, x = twins(), example_input()
    state = {name: value.clone() * 0.5 for name, value in twins().state_dict().items()}
    expected = twins()
    expected.load_state_dict(state)
    wanted = expected(x)
    if not same:
        state["blocks.1.other.weight"] += 1
    with placed(model, machine) as handle:
        machine.run(model, x)
        model.load_state_dict(state, assign=True)
        if same:
            assert torch.equal(machine.run(model, x), wanted)
            assert torch.equal(machine.run(model, x), wanted)
        else:
            with pytest.raises(HandleInvalidatedError, match="tied"):
                machine.run(model, x)
            handle.remove()


def test_they_come_home_together(machine: Machine) -> None:
    model, x = twins(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        machine.run(model, x)
        with handle.pause():
            for module in model.modules():
                for key, value in list(module._parameters.items()):
                    if value is not None:
                        value.data = value.data.clone()
                        module._parameters[key] = value
            handle.refresh()
        assert torch.equal(machine.run(model, x), expected)
        first, second = weights_of(model)
        assert first is second
