"""The handle: statistics, pausing, resizing, removing, and nothing left behind."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from placement_models import (
    MACHINES,
    Machine,
    emulated,
    example_input,
    machine_named,
    part,
    plan_for,
    stack,
)
from torch import Tensor, nn

from device_placement import BudgetTooSmallError, HandleStateError, PlacedModel, place


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


def placed(model: nn.Module, machine: Machine, slots: int = 2) -> PlacedModel:
    return place(model, plan_for(model, machine, slots=slots), backend=machine.make_backend())


def test_the_handle_says_what_it_is() -> None:
    machine = emulated()
    handle = placed(stack(), machine)
    assert repr(handle) == "<PlacedModel Stack on emulated:0, 5 of 6 units streamed, running>"
    handle.pause()
    assert repr(handle).endswith("paused>")
    handle.remove()
    assert repr(handle).endswith("removed>")


def test_statistics_count_waits_and_time_of_the_hooks(machine: Machine) -> None:
    model, x = stack(), example_input()
    with placed(model, machine) as handle:
        for _ in range(3):
            machine.run(model, x)
        stats, now = handle.stats(), machine.clock.now()
    assert (stats.passes, stats.calls, stats.uncalled) == (3, 15, ())
    assert stats.hook_seconds > 0
    if machine.name == "accelerator":
        assert stats.waits == stats.wait_seconds == 0
        assert stats.pinned_bytes == stats.held_bytes["cpu"] > 0
    if machine.name == "emulated":
        # The clock moves for copies alone, so that every forward waits for its own.
        assert stats.waits == 15
        assert stats.wait_seconds == pytest.approx(now)
    assert handle.stats() == stats


def test_a_paused_model_holds_no_slots_and_does_not_run(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        machine.run(model, x)
        resident = handle.plan.bytes_on(machine.compute)
        with handle.pause() as same:
            assert same is handle
            assert handle.paused
            assert handle.stats().held_bytes[machine.compute] == resident
            with pytest.raises(HandleStateError, match=r"paused .* resume\(\)"):
                machine.run(model, x)
            handle.pause()
        assert not handle.paused
        assert torch.equal(machine.run(model, x), expected)
        handle.resume()
        assert torch.equal(machine.run(model, x), expected)


@pytest.mark.parametrize("slots", [1, 3, 7])
def test_resizing_changes_the_slots_and_nothing_else(machine: Machine, slots: int) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        machine.run(model, x)
        handle.resize(slots=slots)
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        if machine.name != "same_device":
            slot_bytes = handle.plan.slot_bytes
            held = handle.stats().held_bytes[machine.compute]
            assert held == handle.plan.bytes_on(machine.compute) + slots * slot_bytes


def test_resizing_while_paused_counts_at_the_end_of_the_pause(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        with handle.pause():
            handle.resize(slots=1)
        assert torch.equal(machine.run(model, x), expected)


def test_resizing_beyond_the_device_keeps_the_old_slots() -> None:
    machine = emulated(capacities={"emulated:0": 3 * 18432})
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        with pytest.raises(BudgetTooSmallError, match=r"4 x .* of streaming buffers"):
            handle.resize(slots=4)
        assert torch.equal(machine.run(model, x), expected)
        assert handle.stats().held_bytes["emulated:0"] == 2 * 18432 + handle.plan.bytes_on("emulated:0")
        with pytest.raises(HandleStateError, match="0 slots cannot receive"):
            handle.resize(slots=0)


def test_resuming_on_a_device_that_got_full_leaves_it_paused() -> None:
    machine = emulated(capacities={"emulated:0": 2 * 18432})
    model, x = stack(), example_input()
    backend = machine.make_backend()
    with place(model, plan_for(model, machine), backend=backend) as handle:
        handle.pause()
        somebody_else = backend.allocate("emulated:0", 18432)
        with pytest.raises(BudgetTooSmallError):
            handle.resume()
        assert handle.paused
        del somebody_else
        handle.resume()
        machine.run(model, x)


def test_a_removed_handle_refuses_everything_but_its_statistics(machine: Machine) -> None:
    model = stack()
    handle = placed(model, machine)
    machine.run(model, example_input())
    handle.remove()
    handle.remove()
    assert handle.removed
    assert handle.stats().calls == 5
    for call in (handle.refresh, handle.pause, handle.resume, lambda: handle.resize(slots=2)):
        with pytest.raises(HandleStateError, match="was removed"):
            call()


def test_nothing_may_be_changed_inside_a_forward(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        for call in (handle.refresh, handle.pause, handle.remove, lambda: handle.resize(slots=3)):

            def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                call()  # noqa: B023 - called before the loop goes on

            hook_handle = part(model, "blocks.2.up").register_forward_pre_hook(hook)
            with pytest.raises(HandleStateError, match=r"the forward of 'blocks\.2'; wait for its end"):
                machine.run(model, x)
            hook_handle.remove()
            assert torch.equal(machine.run(model, x), expected)


def test_place_and_remove_fifty_times_leaks_nothing(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    backend = machine.make_backend()
    plan = plan_for(model, machine)

    def living_tensors() -> int:
        gc.collect()
        return sum(issubclass(type(item), Tensor) for item in gc.get_objects())

    counts = []
    for round_number in range(50):
        with place(model, plan, backend=backend):
            result = machine.run(model, x)
        if round_number in (5, 49):
            counts.append((living_tensors(), threading.active_count()))
    assert counts[0] == counts[1]
    assert torch.equal(result, expected)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any(module._load_state_dict_post_hooks for module in model.modules())


def test_a_forgotten_handle_keeps_the_model_running(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    placed(model, machine)
    gc.collect()
    assert torch.equal(machine.run(model, x), expected)


def test_a_forgotten_model_takes_everything_along(machine: Machine) -> None:
    model = stack()
    threads = threading.active_count()
    handle = placed(model, machine)
    machine.run(model, example_input())
    forgotten = weakref.ref(handle._engine), weakref.ref(model)
    del handle, model
    gc.collect()
    assert [reference() for reference in forgotten] == [None, None]
    for _ in range(100):
        if threading.active_count() <= threads:
            break
        threading.Event().wait(0.01)
    assert threading.active_count() <= threads
