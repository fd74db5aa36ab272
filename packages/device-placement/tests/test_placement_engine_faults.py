"""What fails beside the forwards: a copy, a buffer on the way, a removal at the wrong moment. Nothing is half-done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from placement_models import Machine, accelerator, emulated, example_input, part, plan_for, stack
from torch import Tensor, nn

from device_placement import (
    AcceleratorBackend,
    DeviceUnavailableError,
    EmulatedBackend,
    HandleStateError,
    PlacedModel,
    place,
)
from device_placement.copying._emulated import EmulatedTransfer
from device_placement.copying._pinning import HostMemory
from device_placement.copying._streams import Bouncer
from device_placement.machine._allocation import AllocationRefused


class LostBytesError(RuntimeError):
    """What a copy says that cannot be done."""


@pytest.fixture(params=["emulated", "bounced"])
def machine(request: pytest.FixtureRequest) -> Machine:
    """Two kinds of machine whose copies are made by a thread."""
    if request.param == "emulated":
        return emulated()
    simulated = accelerator(request.getfixturevalue("sim"), donors=("cpu",))
    return replace(simulated, make_backend=lambda: AcceleratorBackend(pin_budget_bytes=0, bounce_bytes=1024))


@pytest.fixture
def broken_link(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Copies that fail while the list is not empty."""
    broken: list[bool] = []

    def or_fail(copy: Callable[..., None]) -> Callable[..., None]:
        def copy_or_fail(*args: Any) -> None:
            if broken:
                raise LostBytesError("the link is down")
            copy(*args)

        return copy_or_fail

    monkeypatch.setattr(EmulatedTransfer, "_copy", or_fail(EmulatedTransfer._copy))
    monkeypatch.setattr(Bouncer, "copy", or_fail(Bouncer.copy))
    return broken


def placed(model: nn.Module, machine: Machine, slots: int = 2) -> PlacedModel:
    return place(model, plan_for(model, machine, slots=slots), backend=machine.make_backend())


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def test_a_copy_that_failed_is_no_result(machine: Machine, broken_link: list[bool]) -> None:
    model, x = stack(), example_input()
    with placed(model, machine) as handle:
        machine.run(model, x)
        broken_link.append(True)
        for _ in range(3):
            with pytest.raises(LostBytesError):
                machine.run(model, x)
        broken_link.clear()
        handle.refresh()


def test_a_copy_that_failed_is_done_again_at_the_next_call(machine: Machine, broken_link: list[bool]) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    broken_link.append(True)  # before anything is fetched ahead, which a thread may have done by the next line
    with placed(model, machine):
        for block in model.blocks:
            with pytest.raises(LostBytesError):
                machine.run(block, x)
        broken_link.clear()
        failures = 0
        for _ in range(4):
            try:
                assert torch.equal(machine.run(model, x), expected)
            except LostBytesError:
                failures += 1
        assert failures <= 2, "more than what was fetched ahead failed"


def test_a_model_whose_copies_failed_can_be_refreshed_and_goes_on(machine: Machine, broken_link: list[bool]) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with placed(model, machine) as handle:
        broken_link.append(True)
        with pytest.raises(LostBytesError):
            for _ in range(2):
                machine.run(model, x)
        broken_link.clear()
        handle.refresh()
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)


def test_a_model_whose_copies_failed_can_be_removed(machine: Machine, broken_link: list[bool]) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    threads = threading.active_count()
    handle = placed(model, machine)
    broken_link.append(True)
    with pytest.raises(LostBytesError):
        for _ in range(2):
            machine.run(model, x)
    with pytest.raises(LostBytesError):
        handle.remove()
    assert handle.removed
    assert hooks_of(model) == 0
    assert threading.active_count() == threads
    assert torch.equal(model.to("cpu")(x), expected)
    handle.remove()


@pytest.mark.parametrize("before", ["place", "resume", "resize"])
def test_slots_that_cannot_be_filled_are_given_back(before: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is memory for the slots, but the copies into them cannot be made ready."""
    machine = emulated()
    model, x = stack(), example_input()
    expected = model(x)

    def refuse(*_: Any) -> None:
        raise LostBytesError("no way there")

    with monkeypatch.context() as patch:
        patch.setattr("device_placement.copying._emulated.EmulatedStreamer.transfer", refuse)
        if before == "place":
            with pytest.raises(LostBytesError):
                placed(model, machine)
    if before == "place":
        assert hooks_of(model) == 0
        assert torch.equal(model(x), expected)
        return
    with placed(model, machine) as handle:
        machine.run(model, x)
        if before == "resume":
            handle.pause()
        with monkeypatch.context() as patch:
            patch.setattr("device_placement.copying._emulated.EmulatedStreamer.transfer", refuse)
            with pytest.raises(LostBytesError):
                handle.resume() if before == "resume" else handle.resize(slots=3)
            assert handle.paused
            assert handle.stats().held_bytes[machine.compute] == handle.plan.bytes_on(machine.compute)
        handle.resume()
        assert torch.equal(machine.run(model, x), expected)
        slots_bytes = handle.stats().held_bytes[machine.compute] - handle.plan.bytes_on(machine.compute)
        assert slots_bytes == 2 * handle.plan.slot_bytes


def test_a_model_removed_just_before_a_unit_says_so() -> None:
    machine = emulated()
    model, x = stack(), example_input()
    expected = model(x)
    handle = placed(model, machine)
    machine.run(model, x)
    hook = part(model, "blocks.2").register_forward_pre_hook(lambda *_: handle.remove(), prepend=True)
    with pytest.raises(HandleStateError, match="was removed"):
        machine.run(model, x)
    hook.remove()
    assert torch.equal(model(x), expected)


def test_a_call_of_a_paused_model_is_not_learnt() -> None:
    machine = emulated()
    model, x = stack(), example_input()
    with placed(model, machine) as handle:
        machine.run(model, x)
        with handle.pause(), pytest.raises(HandleStateError, match="paused"):
            machine.run(model, x)
        machine.run(model, x)
        assert handle.stats().surprises == 0


def test_a_host_without_room_for_a_detour_is_named(sim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies from sim:1 arrive changed, and the buffer of the way through the host is refused."""
    sim.corrupt_link(1, 0)
    machine = accelerator(sim, donors=("sim:1",))
    model, x = stack(), example_input()
    expected = model(x)

    def refuse(*_: Any) -> None:
        raise AllocationRefused("not a byte left")

    monkeypatch.setattr(HostMemory, "allocate", refuse)
    with pytest.raises(DeviceUnavailableError, match=r"'sim:1'.*through the host.*not a byte left"):
        place(model, plan_for(model, machine), backend=AcceleratorBackend())
    sim.corrupt_link(1, 0, on=False)
    assert {tensor.device.type for tensor in model.parameters()} == {"cpu"}
    assert torch.equal(model(x), expected)


class Reporting(nn.Module):
    """Returns its weight beside its result, in a container."""

    def __init__(self, container: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))
        self.container = container

    def forward(self, x: Tensor) -> Any:
        y = x @ self.weight
        if self.container == "dict":
            return {"y": y, "inner": {"weight": self.weight}}
        if self.container == "tuple in dict":
            return {"y": y, "inner": (self.weight.t(), None)}
        return y, {"weight": self.weight}


def tensors_in(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    items = result.values() if isinstance(result, dict) else result if isinstance(result, tuple) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


@pytest.mark.parametrize("container", ["dict", "tuple in dict", "dict in tuple"])
def test_a_weight_that_leaves_in_a_dictionary_is_not_overwritten(container: str) -> None:
    machine = emulated()
    torch.manual_seed(0)
    model = nn.Sequential(*(Reporting(container) for _ in range(4))).eval().requires_grad_(False)
    x = example_input()
    expected = [tensors_in(block(x)) for block in model]
    plan = plan_for(model, machine, slots=1, paths=["0", "1", "2", "3"])
    with place(model, plan, backend=machine.make_backend()), torch.no_grad():
        results = [block(x) for block in model]
        for wanted, result in zip(expected, results, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(wanted, tensors_in(result), strict=True))


def test_a_dictionary_of_nothing_but_results_is_returned_as_it_is() -> None:
    class Output(dict[str, Tensor]):
        """A dictionary of a class of its own, as libraries return."""

    class Plain(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return Output(y=super().forward(x))

    class Leaking(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return Output(y=super().forward(x), weight=self.weight)

    machine = emulated()
    model = nn.Sequential(Plain(32, 32), Leaking(32, 32)).eval().requires_grad_(False)
    with place(model, plan_for(model, machine, paths=["0", "1"]), backend=machine.make_backend()), torch.no_grad():
        plain, leaking = (part(model, path)(example_input()) for path in ("0", "1"))
    assert type(plain) is type(leaking) is Output
    home = part(model, "1").weight
    assert torch.equal(leaking["weight"], home)
    assert leaking["weight"].data_ptr() != home.data_ptr()


def test_capacities_are_kept_after_a_failed_start() -> None:
    """The slots of a start that failed do not stay allocated."""
    machine = emulated(capacities={"emulated:0": 2 * 18432})
    backend = machine.make_backend()
    assert isinstance(backend, EmulatedBackend)
    model = stack()
    with place(model, plan_for(model, machine), backend=backend) as handle:
        with pytest.raises(Exception, match=r"3 x .* of streaming buffers"):
            handle.resize(slots=3)
        assert backend.free_bytes("emulated:0") == 0
        handle.pause()
        assert backend.free_bytes("emulated:0") == 2 * 18432
