"""torch.compile: the forward of a unit is compiled once for all units of its class, and the hooks never."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch._dynamo
from placement_models import Machine, emulated, example_input, part, plan_for, same_device, stack
from torch._dynamo.testing import CompileCounter

from device_placement import place


@pytest.fixture(params=[same_device, emulated])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    torch._dynamo.reset()
    yield request.param()
    torch._dynamo.reset()


def test_a_compiled_model_is_compiled_once_and_never_again(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    counter = CompileCounter()
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle, torch.no_grad():
        compiled = torch.compile(model, backend=counter)
        for _ in range(4):
            assert torch.equal(compiled(x), expected)
        assert handle.stats().calls == 4 * 5
    assert counter.frame_count == 1


def test_compiled_blocks_are_compiled_once(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    counter = CompileCounter()
    plan = plan_for(
        model, machine, home=lambda name: machine.donors[0] if "up" in name or "blocks.2." in name else None
    )
    with place(model, plan, backend=machine.make_backend()) as handle, torch.no_grad():
        for index in range(5):
            part(model, f"blocks.{index}").compile(backend=counter)
        for _ in range(4):
            assert torch.equal(model(x), expected)
        assert handle.stats().calls == 4 * 5
    assert counter.frame_count == 1


def test_another_placement_needs_no_new_compilation(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    counter = CompileCounter()
    for index in range(5):
        part(model, f"blocks.{index}").compile(backend=counter)
    for slots in (1, 2, 3):
        with place(model, plan_for(model, machine, slots=slots), backend=machine.make_backend()), torch.no_grad():
            for _ in range(2):
                assert torch.equal(model(x), expected)
    assert counter.frame_count == 1
