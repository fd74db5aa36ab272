"""torch.compile: the forward of a unit is compiled once for all units of its class, and the hooks never."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo
from placement_models import Machine, emulated, example_input, part, plan_for, same_device, stack
from torch._dynamo.testing import CompileCounter

from device_placement import place
from device_placement.engine._never_compiled import never_compiled


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


LATER = """
import sys
import torch
from placement_models import emulated, example_input, part, plan_for, stack
from device_placement import place
model, x, machine = stack(), example_input(), emulated()
compiled_graphs = [0, 0]
def counting(counter):
    def backend(graph, inputs):
        compiled_graphs[counter] += 1
        return graph.forward
    return backend
backends = counting(0), counting(1)  # the compiler takes another function for another backend
with torch.no_grad(), place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
    expected = model(x)
    print("torch._dynamo" in sys.modules)
    compiled = torch.compile(model, backend=backends[0])
    print(all(torch.equal(compiled(x), expected) for _ in range(3)))
    for index in range(5):
        part(model, f"blocks.{index}").compile(backend=backends[1])
    print(all(torch.equal(model(x), expected) for _ in range(3)))
    print(compiled_graphs, handle.stats().calls, handle.stats().surprises)
"""


def test_a_torch_without_the_interpreter_hook_disables_at_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._dynamo.eval_frame, "_FrameExecStrategy")
    called = never_compiled(torch.compiler.is_compiling)
    counter = CompileCounter()

    @torch.compile(backend=counter)
    def doubled(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
        return x + x, called()

    assert doubled(torch.ones(1))[1] is False
    assert counter.frame_count == 1


@pytest.mark.slow
def test_the_compiler_is_imported_by_who_compiles_and_may_come_after_the_placement() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LATER],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == ["False", "True", "True", "[1, 1] 35 0"]
    assert "recompile" not in result.stderr
