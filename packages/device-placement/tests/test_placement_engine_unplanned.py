"""Buffers that no plan knows: they live where the model computes, and the host may change them as it likes."""

from __future__ import annotations

import pytest
import torch
from placement_models import MACHINES, Machine, example_input, machine_named, part, plan_for, stack
from torch import Tensor, nn

from device_placement import place


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


class Adapted(nn.Module):
    """A layer with rows of adapters beside it, which are not saved."""

    adapters: Tensor
    gain: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Linear(64, 64)
        self.register_buffer("adapters", torch.randn(1, 64), persistent=False)
        self.register_buffer("gain", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) + self.adapters.sum(0) * self.gain
        return result

    def join(self, rows: Tensor) -> None:
        """Take in more adapters."""
        self.adapters = torch.cat([self.adapters, rows.to(self.adapters)])
        self.gain = self.gain * 2


def adapted_stack() -> nn.Module:
    return stack([Adapted(seed) for seed in range(4)], width=64)


def test_an_unsaved_buffer_may_grow_while_the_model_is_placed(machine: Machine) -> None:
    model, alone, x = adapted_stack(), adapted_stack(), example_input(64)
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(7))
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
        assert torch.equal(machine.run(model, x), alone(x))
        before = handle.stats().held_bytes[machine.compute]
        for one in (model, alone):
            part(one, "blocks.1").join(rows)
        for _ in range(2):
            assert torch.equal(machine.run(model, x), alone(x))
        assert handle.stats().held_bytes[machine.compute] - before == rows.nbytes


def test_one_that_grew_is_brought_home_by_refresh(request: pytest.FixtureRequest) -> None:
    machine = machine_named("accelerator", request)
    model, alone, x = adapted_stack(), adapted_stack(), example_input(64)
    rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(7))
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
        machine.run(model, x)
        part(alone, "blocks.1").join(rows)
        part(model, "blocks.1").adapters = part(alone, "blocks.1").adapters.clone()
        part(model, "blocks.1").gain = part(alone, "blocks.1").gain.clone()
        handle.refresh()
        assert part(model, "blocks.1").adapters.device == machine.device
        assert torch.equal(machine.run(model, x), alone(x))
