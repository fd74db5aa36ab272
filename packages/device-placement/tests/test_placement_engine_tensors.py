"""Kinds of tensors: packed, of every type and stride, buffers, subclasses, born in inference mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from placement_models import (
    MACHINES,
    WIDTH,
    Machine,
    Packed,
    emulated,
    example_input,
    machine_named,
    packed,
    part,
    plan_for,
    stack,
)
from torch import Tensor, nn

from device_placement import HandleInvalidatedError, place


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


class PackedBlock(nn.Module):
    """Packed weights, an ordinary bias."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = packed(WIDTH, WIDTH, seed)
        self.bias = nn.Parameter(torch.randn(WIDTH), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        result: Tensor = x @ weight.dense().t() + self.bias
        return result


def packed_stack(seed: int = 0) -> nn.Module:
    return stack([PackedBlock(seed + index) for index in range(4)])


def test_packed_weights_are_streamed_packed(machine: Machine) -> None:
    model, x = packed_stack(), example_input()
    expected = model(x)
    backend = machine.make_backend()
    plan = plan_for(model, machine)
    with place(model, plan, backend=backend) as handle:
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        weight = part(model, "blocks.1").weight
        assert isinstance(weight, Packed)
        assert isinstance(weight, nn.Parameter)
        home = next(home for home in plan.units[1].homes if home.name == "blocks.1.weight")
        assert home.size_bytes == WIDTH * WIDTH + WIDTH * 4
        assert weight.device == weight.codes.device == weight.scale.device == backend.device(home.device)
        if machine.name != "same_device":
            assert handle.stats().held_bytes[machine.compute] == plan.compute_peak_bytes


def test_an_edit_of_packed_weights_is_noticed(machine: Machine) -> None:
    model, x = packed_stack(), example_input()
    other = packed_stack(seed=9)
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        machine.run(model, x)
        model.load_state_dict(other.state_dict())
        assert torch.equal(machine.run(model, x), other(x))
        part(model, "blocks.0").weight.scale.mul_(2)
        part(other, "blocks.0").weight.scale.mul_(2)
        assert torch.equal(machine.run(model, x), other(x))


def test_replaced_packed_weights_move_in(machine: Machine) -> None:
    model, x = packed_stack(), example_input()
    other = packed_stack(seed=9)
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        machine.run(model, x)
        model.load_state_dict(packed_stack(seed=9).state_dict(), assign=True)
        for _ in range(2):
            assert torch.equal(machine.run(model, x), other(x))


def test_packed_weights_moved_behind_our_back_are_refused(request: pytest.FixtureRequest) -> None:
    machine = machine_named("accelerator", request)
    model, x = packed_stack(), example_input()
    expected = model(x)
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
        machine.run(model, x)
        model.to("sim:0")
        with pytest.raises(HandleInvalidatedError):
            machine.run(model, x)
        handle.refresh()
        assert torch.equal(machine.run(model, x), expected)


class Zoo(nn.Module):
    """Tensors of many types and layouts, parameters and buffers."""

    steps: Tensor
    table: Tensor
    mask: Tensor
    scalar: Tensor
    nothing: Tensor
    unsaved: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.sixteenth = nn.Parameter(torch.randn(WIDTH, WIDTH).bfloat16())
        self.eighth = nn.Parameter(torch.randn(WIDTH, WIDTH).to(torch.float8_e4m3fn))
        self.turned = nn.Parameter(torch.randn(WIDTH, WIDTH).t())
        self.image = nn.Parameter(torch.randn(4, 4, 3, 3).to(memory_format=torch.channels_last))
        self.register_buffer("steps", torch.arange(WIDTH))
        self.register_buffer("table", torch.randint(-100, 100, (WIDTH,), dtype=torch.int8))
        self.register_buffer("mask", torch.rand(WIDTH) > 0.5)
        self.register_buffer("scalar", torch.tensor(1.5, dtype=torch.float64))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("unsaved", torch.rand(WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.sixteenth.float() @ self.eighth.float() @ self.turned
        y = y * self.scalar.float() + self.image.sum() + self.nothing.sum()
        return torch.where(self.mask, y, x) + self.table * self.steps + self.unsaved


def test_every_type_and_stride_and_buffers_are_streamed(machine: Machine) -> None:
    model, x = stack([Zoo() for _ in range(4)]), example_input()
    expected = model(x)
    strides = {name: value.stride() for name, value in model.state_dict().items()}
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        assert {name: value.stride() for name, value in model.state_dict().items()} == strides


def test_weights_born_in_inference_mode_can_be_placed_and_used_outside_it(machine: Machine) -> None:
    with torch.inference_mode():
        model, x = stack(), example_input()
        expected = model(x)
        handle = place(model, plan_for(model, machine), backend=machine.make_backend())
        assert torch.equal(machine.run(model, x), expected)
    assert torch.equal(machine.run(model, x.clone()), expected)
    handle.pause()
    with torch.inference_mode():
        handle.resume()
        handle.resize(slots=3)
        assert torch.equal(machine.run(model, x), expected)
    assert torch.equal(machine.run(model, x.clone()), expected)
    handle.remove()


def test_gradients_of_activations_flow_through_a_placed_model(machine: Machine) -> None:
    model = stack(2)
    x = example_input().to(machine.device).requires_grad_()
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        model(x).sum().backward()
    reference = example_input().requires_grad_()
    stack(2)(reference).sum().backward()
    assert x.grad is not None
    assert reference.grad is not None
    assert torch.equal(x.grad.cpu(), reference.grad)


def test_a_backward_after_its_slot_was_filled_again_is_an_error_not_a_wrong_gradient() -> None:
    machine = emulated()
    model = stack(5)
    x = example_input().requires_grad_()
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        result = model(x).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


class Marked(nn.Parameter):
    """A parameter that knows something, as quantised formats of other libraries do."""

    secret: int

    @classmethod
    def with_secret(cls, data: Tensor, secret: int) -> Marked:
        marked: Any = torch.Tensor._make_subclass(cls, data, False)
        marked.secret = secret
        return marked  # type: ignore[no-any-return]


class Tells(nn.Module):
    """Uses what its weight knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = Marked.with_secret(torch.randn(WIDTH, WIDTH), secret=3)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.weight, Marked)
        return x @ self.weight * self.weight.secret


def test_a_parameter_subclass_keeps_its_class_and_its_attributes(machine: Machine) -> None:
    model, x = stack([Tells() for _ in range(3)]), example_input()
    expected = model(x)
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        assert torch.equal(machine.run(model, x), expected)
