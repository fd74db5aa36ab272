"""On simulated devices: every byte where the plan wants it, every copy on the link it should take, no host waits."""

from __future__ import annotations

import types

import pytest
import torch
from placement_models import Machine, Stack, accelerator, example_input, plan_for, stack

from device_placement import BudgetTooSmallError, DevicesFullError, DeviceUnavailableError, PlacementPlan, place


@pytest.fixture
def machine(sim: types.ModuleType) -> Machine:
    return accelerator(sim, donors=("cpu", "sim:1", "sim:2"))


def donor_of_block(name: str) -> str | None:
    """Blocks go to the host, the second and the third device in turn; the rest stays."""
    if not name.startswith("blocks."):
        return None
    return ("cpu", "sim:1", "sim:2")[int(name.split(".")[1]) % 3]


def aligned(plan: PlacementPlan, device: str) -> int:
    """Bytes of the tensors that live on a device, each aligned."""
    return sum(-(-home.size_bytes // 512) * 512 for unit in plan.units for home in unit.homes if home.device == device)


def test_the_bytes_on_every_device_equal_the_plan(sim: types.ModuleType, machine: Machine) -> None:
    model = stack(6)
    before = [sim.mem(index).used for index in range(3)]
    pinned = sim.pinned_bytes()
    plan = plan_for(model, machine, home=donor_of_block, slots=3)
    with place(model, plan, backend=machine.make_backend()) as handle:
        used = [sim.mem(index).used - before[index] for index in range(3)]
        assert used == [
            aligned(plan, "sim:0") + 3 * plan.slot_bytes,
            aligned(plan, "sim:1"),
            aligned(plan, "sim:2"),
        ]
        assert sim.pinned_bytes() - pinned == aligned(plan, "cpu")
        held = handle.stats().held_bytes
        assert (held["sim:1"], held["sim:2"], held["cpu"]) == (used[1], used[2], aligned(plan, "cpu"))
    assert sim.mem(0).used - before[0] == aligned(plan, "sim:0")


def test_each_pass_moves_each_share_once_over_its_link(sim: types.ModuleType, machine: Machine) -> None:
    model, x = stack(6), example_input().to("sim:0")
    plan = plan_for(model, machine, home=donor_of_block)
    with place(model, plan, backend=machine.make_backend()), torch.no_grad():
        model(x)
        sim.reset()
        for _ in range(4):
            model(x)
        crossed = {(link.src, link.dst, link.kind): link for link in sim.links()}
        assert {key: link.bytes for key, link in crossed.items()} == {
            ("host", "sim:0", "async"): 4 * aligned(plan, "cpu"),
            ("sim:1", "sim:0", "d2d"): 4 * aligned(plan, "sim:1"),
            ("sim:2", "sim:0", "d2d"): 4 * aligned(plan, "sim:2"),
        }
        assert {link.count for link in crossed.values()} == {4 * 2}
        torch.accelerator.synchronize(0)


def test_the_host_never_waits_for_a_device_in_the_steady_state(sim: types.ModuleType, machine: Machine) -> None:
    model, x = stack(6), example_input().to("sim:0")
    plan = plan_for(model, machine, home=donor_of_block)
    with place(model, plan, backend=machine.make_backend()), torch.no_grad():
        model(x)
        before = sim.counters().host_syncs
        for _ in range(5):
            model(x)
        assert sim.counters().host_syncs == before
        model.order = [0, 2, 4]  # nor when units are skipped
        model(x)
        assert sim.counters().host_syncs == before


def test_copies_run_ahead_of_the_forwards(sim: types.ModuleType, machine: Machine) -> None:
    model, x = stack(6), example_input().to("sim:0")
    with place(model, plan_for(model, machine, home=donor_of_block), backend=machine.make_backend()), torch.no_grad():
        model(x)
        # The first two units of the next pass are on their way although nobody asked for them.
        assert sim.counters().queued > 0


def test_nothing_computes_with_a_weight_that_was_not_brought_over(sim: types.ModuleType, machine: Machine) -> None:
    model, x = stack(6), example_input()
    expected = model(x)
    with place(model, plan_for(model, machine, home=donor_of_block), backend=machine.make_backend()) as handle:
        for module in model.modules():
            module._forward_pre_hooks.clear()
        with pytest.raises(RuntimeError, match="same device"):
            machine.run(model, x)
        assert handle.stats().calls == 0
    with place(model, plan_for(model, machine, home=donor_of_block), backend=machine.make_backend()):
        assert torch.equal(machine.run(model, x), expected)


@pytest.mark.parametrize("origin", ["cpu", "sim:0", "sim:3"])
def test_a_model_is_placed_from_wherever_it_is(sim: types.ModuleType, machine: Machine, origin: str) -> None:
    model, x = stack(6), example_input()
    expected = model(x)
    model.to(origin)
    used = [sim.mem(index).used for index in range(4)]
    plan = plan_for(model, machine, home=donor_of_block)
    with place(model, plan, backend=machine.make_backend()):
        assert torch.equal(machine.run(model, x), expected)
        if origin != "cpu":
            assert sim.mem(int(origin[-1])).used < used[int(origin[-1])] or origin == "sim:0"


def test_a_model_larger_than_the_compute_device_runs(sim: types.ModuleType, machine: Machine) -> None:
    model, x = stack(40, width=128), example_input(width=128)
    expected = model(x)
    plan = plan_for(model, machine, home=donor_of_block)
    sim.set_capacity(0, sim.mem(0).used + plan.compute_peak_bytes + (1 << 20))
    assert sim.mem(0).capacity < model_bytes(model)
    with place(model, plan, backend=machine.make_backend()):
        for _ in range(2):
            assert torch.equal(machine.run(model, x), expected)


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters."""
    return sum(parameter.nbytes for parameter in model.parameters())


def test_a_full_donor_passes_to_the_next(sim: types.ModuleType, machine: Machine) -> None:
    model, x = stack(6, width=128), example_input(width=128)
    expected = model(x)
    plan = plan_for(model, machine, home=lambda name: "sim:1" if name.startswith("blocks") else None)
    sim.set_capacity(1, sim.mem(1).used + 2 * plan.slot_bytes)
    sim.set_capacity(2, sim.mem(2).used + plan.slot_bytes)
    with place(model, plan, backend=machine.make_backend()) as handle:
        donors = [unit.homes[0].device for unit in handle.plan.units[:6]]
        assert donors == ["sim:1", "sim:1", "sim:2", "cpu", "cpu", "cpu"]
        for _ in range(2):
            assert torch.equal(machine.run(model, x), expected)


def assert_nothing_changed(sim: types.ModuleType, model: Stack, before: list[int], device: str) -> None:
    """Parameters are on `device`, and so are their bytes."""
    assert {str(parameter.device) for parameter in model.parameters()} == {device}
    assert [sim.mem(index).used for index in range(4)] == before
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("origin", ["cpu", "sim:0"])
def test_a_refusal_in_the_middle_leaves_nothing_half_placed(
    sim: types.ModuleType, machine: Machine, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = stack(6, width=128).to(origin), example_input(width=128)
    expected = stack(6, width=128)(x)
    before = [sim.mem(index).used for index in range(4)]
    plan = plan_for(model, machine, home=lambda name: "sim:2" if name.startswith("blocks") else None)
    backend = machine.make_backend()
    allocate = type(backend).allocate

    def without_host(self: object, name: str, size_bytes: int) -> torch.Tensor:
        return allocate(self, name, (1 << 60) if name == "cpu" else size_bytes)  # type: ignore[arg-type]

    monkeypatch.setattr(type(backend), "allocate", without_host)
    sim.set_capacity(2, sim.mem(2).used + 4 * plan.slot_bytes)
    with pytest.raises(DevicesFullError, match=r"'blocks\.4'") as caught:
        place(model, plan, backend=backend)
    assert list(caught.value.refusals) == ["sim:2", "cpu"]
    del caught
    assert_nothing_changed(sim, model, before, origin)
    assert torch.equal(model.to("cpu")(x), expected)


def test_a_donor_without_room_for_the_test_pattern_is_named(sim: types.ModuleType, machine: Machine) -> None:
    model = stack()
    sim.set_capacity(1, sim.mem(1).used + 4096)
    with pytest.raises(DeviceUnavailableError, match="'sim:1' cannot be used: there is no room for 64 KiB"):
        place(model, plan_for(model, machine), backend=machine.make_backend())


def test_a_compute_device_that_fills_up_while_placing_gives_everything_back(
    sim: types.ModuleType, machine: Machine
) -> None:
    model, x = stack(6), example_input()
    expected = model(x)
    before = [sim.mem(index).used for index in range(4)]
    plan = plan_for(model, machine, home=lambda name: "cpu" if name.startswith("blocks.0") else None)
    squeezed: list[torch.Tensor] = []

    def squeeze(done: int, total: int) -> None:
        if done > total // 2 and not squeezed:
            free_bytes = sim.mem(0).capacity - sim.mem(0).used
            squeezed.append(torch.empty(free_bytes - 512, dtype=torch.uint8, device="sim:0"))

    with pytest.raises(BudgetTooSmallError, match="the resident tensors up to 'blocks") as caught:
        place(model, plan, backend=machine.make_backend(), progress=squeeze)
    assert caught.value.device == "sim:0"
    del caught
    squeezed.clear()
    assert_nothing_changed(sim, model, before, "cpu")
    assert torch.equal(model(x), expected)
