"""No tensor that the caller can reach ever changes by value, whatever is put in place of it and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_models import (
    MACHINES,
    Machine,
    emulated,
    example_input,
    machine_named,
    plan_for,
    same_device,
    stack,
)
from torch import Tensor, nn
from torch.func import functional_call

from device_placement import DevicesFullError, EmulatedBackend, Link, PlacedModel, place
from device_placement.machine._allocation import AllocationRefused

BLOCKS = 3
X = example_input(8)


class Interruption(BaseException):
    """Like the ones of hosts: no Exception."""


class World:
    """A placed model beside its unplaced twin, and every tensor that was handed out, with the values it must keep."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.model, self.twin = stack(BLOCKS, width=8), stack(BLOCKS, width=8)
        self.handed_out: list[tuple[Tensor, Tensor]] = []
        self.earlier: dict[str, list[nn.Parameter]] = {}
        self.handle: PlacedModel = place(self.model, plan_for(self.model, machine), backend=machine.make_backend())
        self.note()

    def note(self) -> None:
        """Hold every parameter, and an alias of it, as a caller does."""
        for name, parameter in self.model.named_parameters():
            self.handed_out += [(each, each.detach().clone()) for each in (parameter, parameter.detach())]
            if all(parameter is not known for known in self.earlier.setdefault(name, [])):
                self.earlier[name].append(parameter)

    def check(self) -> None:
        """Outputs are those of the twin, and what was handed out is what it was."""
        assert torch.equal(self.machine.run(self.model, X), self.twin(X))
        for tensor, values in self.handed_out:
            assert torch.equal(tensor.detach().cpu(), values.cpu())
        self.note()


def owner_of(model: nn.Module, name: str) -> tuple[Any, str]:
    path, _, key = name.rpartition(".")
    return model.get_submodule(path), key


def put_another(world: World, name: str, number: int) -> None:
    for model in (world.model, world.twin):
        owner, key = owner_of(model, name)
        fresh = torch.full_like(getattr(owner, key), 0.01 * number)
        setattr(owner, key, nn.Parameter(fresh, requires_grad=False))


def put_back(world: World, name: str, number: int) -> None:
    known = world.earlier[name]
    earlier = known[number % len(known)]
    owner, key = owner_of(world.model, name)
    if earlier.device == getattr(owner, key).device:
        setattr(owner, key, earlier)
        twin, key = owner_of(world.twin, name)
        setattr(twin, key, nn.Parameter(earlier.detach().cpu().clone(), requires_grad=False))


def call_with_others(world: World, name: str, number: int) -> None:
    owner, key = owner_of(world.model, name)
    other = torch.full_like(getattr(owner, key), 0.02 * number)
    values = other.clone()
    with torch.no_grad():
        result = functional_call(world.model, {name: other}, (X.to(world.machine.device),))
        assert torch.equal(result.cpu(), functional_call(world.twin, {name: values.cpu()}, (X,)))
    world.handed_out.append((other, values))


def load(world: World, name: str, number: int) -> None:
    state = {key: value.detach().clone() * (1 + 0.1 * number) for key, value in world.model.state_dict().items()}
    world.handed_out += [(value, value.clone()) for value in state.values()]
    world.twin.load_state_dict({key: value.cpu() for key, value in state.items()})
    world.model.load_state_dict(state, assign=True)


def refresh(world: World, name: str, number: int) -> None:
    world.handle.refresh()


def data(world: World, name: str, number: int) -> None:
    """Other memory behind the same object; the caller keeps an alias of the memory that was there."""
    for model in (world.model, world.twin):
        owner, key = owner_of(model, name)
        parameter = getattr(owner, key)
        parameter.data = torch.full_like(parameter, 0.03 * number)
    world.handed_out = [
        (each, values) for each, values in world.handed_out if each is not getattr(*owner_of(world.model, name))
    ]
    world.handle.refresh()


def interrupted(world: World, name: str, number: int) -> None:
    def fail(*_: Any) -> None:
        raise Interruption

    hook = world.model.get_submodule(f"blocks.{number % BLOCKS}").register_forward_pre_hook(fail)
    with pytest.raises(Interruption):
        world.machine.run(world.model, X)
    hook.remove()


Change = Callable[[World, str, int], None]
CHANGES: list[Change] = [put_another, put_back, call_with_others, load, refresh, data, interrupted]
NAMES = [name for name, _ in stack(BLOCKS, width=8).named_parameters()]
changes = st.lists(st.tuples(st.sampled_from(CHANGES), st.sampled_from(NAMES), st.integers(1, 9)), max_size=5)


@pytest.mark.parametrize("make", [same_device, emulated, lambda: emulated(2)])
@settings(max_examples=12, deadline=None)
@given(changes=changes)
def test_nothing_that_was_handed_out_changes(
    make: Callable[[], Machine], changes: list[tuple[Change, str, int]]
) -> None:
    world = World(make())
    for change, name, number in changes:
        change(world, name, number)
        world.check()
    world.handle.remove()
    for tensor, values in world.handed_out:
        assert torch.equal(tensor.detach().cpu(), values.cpu())


@pytest.mark.parametrize("name", MACHINES)
def test_the_old_object_is_untouched_and_comes_back(name: str, request: pytest.FixtureRequest) -> None:
    world = World(machine_named(name, request))
    copied = world.handle.stats().copied_bytes
    for tensor_name in NAMES:
        old = getattr(*owner_of(world.model, tensor_name))
        put_another(world, tensor_name, 5)
        world.check()
        put_back(world, tensor_name, 0)
        assert getattr(*owner_of(world.model, tensor_name)) is old
        world.check()
    held = world.handle.stats().held_bytes
    assert sum(held.values()) == sum(world.handle.stats().held_bytes.values())
    assert copied.keys() == world.handle.stats().copied_bytes.keys()
    world.handle.remove()


class FullLater(EmulatedBackend):
    """Gives memory until somebody says that it is used up."""

    full = False

    def allocate(self, name: str, size_bytes: int) -> Tensor:
        if self.full:
            raise AllocationRefused("no room")
        return super().allocate(name, size_bytes)


def test_a_donor_without_room_for_a_newcomer_refuses_it_and_keeps_everything() -> None:
    machine, model = emulated(), stack(2, width=8)
    links = [Link(source=name, target="emulated:0", gb_per_second=1.0) for name in (*machine.donors, "cpu")]
    backend = FullLater(links, clock=machine.clock)
    with place(model, plan_for(model, machine), backend=backend):
        expected = machine.run(model, X)
        owner, _ = owner_of(model, "blocks.0.up.weight")
        old, values = owner.weight, owner.weight.clone()
        backend.full = True
        owner.weight = nn.Parameter(torch.zeros_like(old), requires_grad=False)
        with pytest.raises(DevicesFullError, match="what replaced streamed tensors"):
            machine.run(model, X)
        owner.weight = old
        assert torch.equal(old, values)
        assert torch.equal(machine.run(model, X), expected)
