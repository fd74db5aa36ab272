"""Take out any one wait, event or record_stream of the engine, and the simulated devices notice."""

from __future__ import annotations

import gc
import types
from collections.abc import Callable, Iterator

import pytest
import torch
from placement_late import late_threads
from placement_models import Block, accelerator, example_input, plan_for, stack
from placement_mutants import ORDERED_MODULES, Mutant, mutants, mutated
from torch import Tensor, nn

import device_placement

MUTANTS = mutants()

Scenario = Callable[[types.ModuleType, types.ModuleType], None]
"""Uses a package, changed or not, on simulated devices."""


def first_input() -> Tensor:
    """Something on the compute device that no stream is still writing."""
    x = example_input().to("sim:0")
    torch.accelerator.synchronize(0)
    return x


def several_donors_and_orders(package: types.ModuleType, sim: types.ModuleType) -> None:
    """Steady passes and surprises; copies of two donors into each slot."""
    machine = accelerator(sim)
    model, x = stack(), first_input()
    with package.place(model, plan_for(model, machine), backend=package.AcceleratorBackend()), torch.no_grad():
        for model.order in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [4, 2, 0], [3, 3], [1], [0, 1, 2, 3, 4]):
            expected = stack()
            expected.order = model.order
            assert torch.equal(model(x).cpu(), expected(example_input()))


def donors_in_turn(package: types.ModuleType, sim: types.ModuleType) -> None:
    """What is overwritten unread came from another donor, on another stream."""
    machine = accelerator(sim)
    model, x = stack(6), first_input()

    def home(name: str) -> str | None:
        return machine.donors[int(name.split(".")[1]) % 2] if name.startswith("blocks") else None

    plan = plan_for(model, machine, home=home)
    with package.place(model, plan, backend=package.AcceleratorBackend()), torch.no_grad():
        for model.order in ([3, 0], [5, 2], [1, 4]):
            model(x)


def through_the_host(package: types.ModuleType, sim: types.ModuleType) -> None:
    """Two hops from a donor that cannot be reached."""
    sim.corrupt_link(1, 0)
    machine = accelerator(sim, donors=("sim:1",))
    model, x = stack(), first_input()
    with package.place(model, plan_for(model, machine), backend=package.AcceleratorBackend()), torch.no_grad():
        for model.order in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [4, 2, 0]):
            model(x)
    sim.corrupt_link(1, 0, on=False)


def through_buffers(package: types.ModuleType, sim: types.ModuleType) -> None:
    """A thread copies piece by piece; a pause waits for it."""
    machine = accelerator(sim, donors=("cpu",))
    model, x = stack(), first_input()
    backend = package.AcceleratorBackend(pin_budget_bytes=0, bounce_bytes=1024)
    expected = stack()(example_input())
    with package.place(model, plan_for(model, machine), backend=backend) as handle, torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(x).cpu(), expected)
        handle.pause()
        sim.reset()
        handle.resume()
        handle.pause()
        assert sum(link.bytes for link in sim.links()) == 2 * handle.plan.slot_bytes


def through_buffers_late(package: types.ModuleType, sim: types.ModuleType) -> None:
    """The same, where the thread does nothing before somebody waits for it."""
    with late_threads(package):
        through_buffers(package, sim)


class CallsItself(Block):
    """Calls itself on another stream."""

    def forward(self, x: Tensor, stream: torch.Stream | None = None) -> Tensor:
        if stream is not None:
            before = torch.accelerator.current_stream(0)
            torch.accelerator.set_stream(stream)
            self(x)
            torch.accelerator.set_stream(before)
        return super().forward(x)


def several_streams(package: types.ModuleType, sim: types.ModuleType) -> None:
    """One unit is read on two streams that nothing else orders."""
    machine = accelerator(sim)
    model, x = stack([CallsItself() for _ in range(5)]), first_input()
    streams = [torch.Stream(device="sim:0") for _ in range(2)]
    with package.place(model, plan_for(model, machine), backend=package.AcceleratorBackend()), torch.no_grad():
        for first, second in ((0, 1), (1, 0), (0, 1)):
            torch.accelerator.set_stream(streams[first])
            model.blocks[0](x)
            torch.accelerator.set_stream(streams[second])
            for block in model.blocks:
                block(x)
        for block in model.blocks:
            block(x, streams[0])
        torch.accelerator.synchronize(0)


def forgotten(package: types.ModuleType, sim: types.ModuleType) -> None:
    """Models go without a goodbye, while copies are under way and a forward on a stream of its own runs."""
    machine = accelerator(sim)
    x = first_input()
    streams = [torch.accelerator.current_stream(0), torch.Stream(device="sim:0")]
    for blocks in (2, 5):  # as many as there are slots, so that what was read stays; and more
        model = stack(blocks)
        package.place(model, plan_for(model, machine), backend=package.AcceleratorBackend())
        torch.accelerator.set_stream(streams[1])
        with torch.no_grad():
            model.blocks[0](x)
        torch.accelerator.set_stream(streams[0])
        del model
        gc.collect()
    torch.accelerator.synchronize(0)


def replaced_weights(package: types.ModuleType, sim: types.ModuleType) -> None:
    """The host writes to pinned memory that copies may still read."""
    machine = accelerator(sim, donors=("cpu",))
    model, x = stack(), first_input()
    with package.place(model, plan_for(model, machine), backend=package.AcceleratorBackend()), torch.no_grad():
        model(x)
        with sim.HostRaceMode():
            norm: nn.Module = model.get_submodule("blocks.0.norm")
            norm.weight = nn.Parameter(torch.zeros(32), requires_grad=False)
            model(x)


def replaced_units(package: types.ModuleType, sim: types.ModuleType) -> None:
    """All tensors of a unit are replaced: their pages may be unpinned, which no copy must be reading then."""
    machine = accelerator(sim, donors=("cpu",))
    model, x = stack(), first_input()
    with package.place(model, plan_for(model, machine), backend=package.AcceleratorBackend()), torch.no_grad():
        model(x)
        syncs = sim.counters().host_syncs
        block = model.get_submodule("blocks.0")
        for name, shape in [(name, parameter.shape) for name, parameter in block.named_parameters()]:
            path, _, key = name.rpartition(".")
            setattr(block.get_submodule(path), key, nn.Parameter(torch.full(shape, 0.5), requires_grad=False))
        model(x)
        assert sim.counters().host_syncs > syncs


def resized_and_removed(package: types.ModuleType, sim: types.ModuleType) -> None:
    """Slots are given back right after forwards and copies were started."""
    machine = accelerator(sim)
    model, x = stack(), first_input()
    with package.place(model, plan_for(model, machine), backend=package.AcceleratorBackend()) as handle:
        model(x)
        syncs = sim.counters().host_syncs
        handle.resize(slots=1)
        assert sim.counters().queued <= 4, "slots were given back before their copies had ended"
        assert sim.counters().host_syncs > syncs
        model(x)


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    """Let collections look at nothing older than this module: there are many, and torch alone has a million objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


SCENARIOS: list[Scenario] = [
    several_donors_and_orders,
    donors_in_turn,
    through_the_host,
    through_buffers,
    through_buffers_late,
    several_streams,
    replaced_weights,
    replaced_units,
    resized_and_removed,
    forgotten,
]


def complaint(scenario: Scenario, package: types.ModuleType, sim: types.ModuleType) -> str:
    """What went wrong, empty if nothing did."""
    stream = torch.accelerator.current_stream(0)
    try:
        scenario(package, sim)
    except (RuntimeError, AssertionError) as error:
        return f"{scenario.__name__}: {str(error).splitlines()[0] if str(error) else 'wrong result'}"
    finally:
        torch.accelerator.set_stream(stream)
        torch.accelerator.synchronize(0)
    violations = sim.take_violations()
    return f"{scenario.__name__}: {violations[0]}" if violations else ""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_engine_as_it_is_passes(sim: types.ModuleType, scenario: Scenario) -> None:
    for _ in range(3):
        assert complaint(scenario, device_placement, sim) == ""


@pytest.mark.filterwarnings("ignore:module forward hook with ``always_call=True`` raised")
@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_missing_call_is_caught(sim: types.ModuleType, mutant: Mutant) -> None:
    with mutated(mutant) as package:
        caught = any(complaint(scenario, package, sim) for scenario in SCENARIOS)
    gc.collect()
    # A thread of the broken engine may have issued its last copies only when it was collected.
    torch.accelerator.synchronize(0)
    sim.take_violations()
    assert caught, f"nothing noticed that line {mutant.line} of {mutant.module} is missing: {mutant.text}"


def test_all_ordering_calls_are_tried() -> None:
    assert len(MUTANTS) >= 25
    assert {mutant.module for mutant in MUTANTS} == set(ORDERED_MODULES)
