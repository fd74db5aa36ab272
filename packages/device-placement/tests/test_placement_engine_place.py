"""place(): order of the moves, devices that are full, and getting everything back when it fails."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from placement_models import (
    Machine,
    Stack,
    emulated,
    example_input,
    part,
    plan_for,
    same_device,
    stack,
)
from torch import Tensor, nn

from device_placement import (
    BudgetTooSmallError,
    DevicesFullError,
    DeviceUnavailableError,
    EmulatedBackend,
    HandleStateError,
    Link,
    PlacementPlan,
    TensorHome,
    UnitPlacement,
    UnknownLinkError,
    place,
)


def unit_bytes() -> int:
    """Bytes of one block, every tensor aligned."""
    return sum(-(-parameter.nbytes // 512) * 512 for parameter in part(stack(1), "blocks.0").parameters())


def everything(model: nn.Module) -> list[tuple[str, int, torch.device, tuple[int, ...]]]:
    """Where each tensor is: name, identity, device, strides."""
    return [(name, id(value), value.device, value.stride()) for name, value in model.named_parameters()]


def test_parameters_stay_the_objects_they_were() -> None:
    machine = emulated()
    model = stack()
    model.requires_grad_(True)
    before = everything(model)
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        machine.run(model, example_input())
        assert everything(model) == before
        assert all(parameter.requires_grad for parameter in model.parameters())
    assert everything(model) == before


def test_progress_ends_with_the_whole_model() -> None:
    machine = emulated(2)
    model = stack()
    plan = plan_for(model, machine, home=lambda name: machine.donors[0] if "up" in name else None)
    reports: list[tuple[int, int]] = []
    place(
        model, plan, backend=machine.make_backend(), progress=lambda done, total: reports.append((done, total))
    ).remove()
    done = [size for size, _ in reports]
    assert done == sorted(set(done))
    assert reports[-1] == (plan.size_bytes, plan.size_bytes)
    assert {total for _, total in reports} == {plan.size_bytes}


def test_placing_twice_is_refused() -> None:
    machine = emulated()
    model = stack()
    plan = plan_for(model, machine)
    with place(model, plan, backend=machine.make_backend()):
        for again in (model, nn.Sequential(model)):
            with pytest.raises(HandleStateError, match="placed already; call remove"):
                place(again, plan, backend=machine.make_backend())
    place(model, plan, backend=machine.make_backend()).remove()


def test_the_compute_device_decides_the_backend() -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with place(model, plan_for(model, same_device())) as handle:
        assert torch.equal(model(x), expected)
        assert handle.stats().copies == 0


def test_an_accelerator_as_donor_of_the_cpu_is_refused() -> None:
    model = stack()
    plan = plan_for(model, replace(same_device(), donors=("cuda:0",)))
    with pytest.raises(DeviceUnavailableError, match="cannot be streamed from an accelerator"):
        place(model, plan)


def test_a_donor_without_a_link_is_refused_before_anything_is_moved() -> None:
    machine = replace(emulated(), donors=("emulated:7",))
    model = stack()
    before = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(UnknownLinkError):
        place(model, plan_for(model, machine), backend=machine.make_backend())
    assert [parameter.data_ptr() for parameter in model.parameters()] == before


def test_a_compute_device_that_is_too_small_is_refused_before_anything_is_moved() -> None:
    machine = emulated(capacities={"emulated:0": 2 * unit_bytes() - 1})
    model = stack()
    before = [parameter.data_ptr() for parameter in model.parameters()]
    with pytest.raises(BudgetTooSmallError, match="nothing was moved") as caught:
        place(model, plan_for(model, machine, slots=2), backend=machine.make_backend())
    assert caught.value.device == "emulated:0"
    assert caught.value.missing_bytes == 1
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
    place(model, plan_for(model, machine, slots=1), backend=machine.make_backend()).remove()


def test_a_donor_without_room_passes_to_the_next_then_to_the_host(caplog: pytest.LogCaptureFixture) -> None:
    machine = emulated(2, capacities={"emulated:1": 2 * unit_bytes(), "emulated:2": unit_bytes()})
    model, x = stack(), example_input()
    expected = model(x)
    plan = plan_for(model, machine, home=lambda name: "emulated:1" if name.startswith("blocks") else None)
    with caplog.at_level(logging.WARNING), place(model, plan, backend=machine.make_backend()) as handle:
        for _ in range(2):
            assert torch.equal(machine.run(model, x), expected)
        homes = [{home.device for home in unit.homes} for unit in handle.plan.units[:5]]
        assert homes == [{"emulated:1"}, {"emulated:1"}, {"emulated:2"}, {"cpu"}, {"cpu"}]
        assert handle.plan.donors == ("emulated:1", "emulated:2", "cpu")
        held = handle.stats().held_bytes
        assert [held[name] // unit_bytes() for name in handle.plan.donors] == [2, 1, 2]
        assert len(handle.plan.warnings) == 3
        assert "blocks.3" in handle.plan.warnings[1]
        assert "went to cpu, since emulated:1; emulated:2 had no room" in handle.plan.warnings[1]
    assert handle.plan.warnings[0] in caplog.text
    assert plan.donors == machine.donors


def full_everywhere() -> Machine:
    """Three blocks fit, the fourth does not."""
    size = unit_bytes()
    return emulated(2, capacities={"emulated:1": 2 * size, "emulated:2": size, "cpu": size - 1})


def test_no_room_anywhere_is_stated_and_everything_is_back() -> None:
    machine = full_everywhere()
    model, x = stack(), example_input()
    expected = model(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = everything(model)
    plan = plan_for(model, machine, home=lambda name: "emulated:1" if name.startswith("blocks") else None)
    backend = machine.make_backend()
    with pytest.raises(
        DevicesFullError, match=r"'blocks\.3' needs .* no device has room .*every tensor is back"
    ) as caught:
        place(model, plan, backend=backend)
    assert list(caught.value.refusals) == ["emulated:1", "emulated:2", "cpu"]
    assert caught.value.needed_bytes == unit_bytes()
    assert everything(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(x), expected)
    del caught
    gc.collect()
    assert backend.free_bytes("emulated:1") == 2 * unit_bytes()


def test_an_interrupt_while_moving_brings_everything_back() -> None:
    machine = emulated()
    model, x = stack(), example_input()
    expected = model(x)
    before = everything(model)

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place(model, plan_for(model, machine), backend=machine.make_backend(), progress=interrupt)
    assert everything(model) == before
    assert torch.equal(model(x), expected)


class NoSlots(EmulatedBackend):
    """Has room for every share, but not for slots."""

    def allocate(self, name: str, size_bytes: int) -> Tensor:
        if name == "emulated:0":
            name = "full"
        return super().allocate(name, size_bytes)


def test_no_room_for_the_slots_brings_everything_back() -> None:
    machine = emulated()
    link = Link(source="emulated:1", target="emulated:0", gb_per_second=1)
    backend = NoSlots([link], capacities={"full": unit_bytes()})
    model, x = stack(), example_input()
    expected = model(x)
    before = everything(model)
    with pytest.raises(BudgetTooSmallError, match=r"2 x .* of streaming buffers .*fewer slots") as caught:
        place(model, plan_for(model, machine), backend=backend)
    assert caught.value.available_bytes == unit_bytes()
    assert everything(model) == before
    assert torch.equal(model(x), expected)


def test_tied_tensors_inside_a_unit_are_streamed_once() -> None:
    machine = emulated()
    model, x = stack(3), example_input()
    for index in range(3):
        block = part(model, f"blocks.{index}")
        block.up.weight = nn.Parameter(torch.randn(64, 32), requires_grad=False)
        block.down.weight.data = torch.randn(64, 32).t()
        block.extra = block.up
    expected = model(x)
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
        assert torch.equal(machine.run(model, x), expected)
        assert part(model, "blocks.0.extra").weight is part(model, "blocks.0.up").weight
        assert handle.stats().held_bytes["emulated:1"] == 3 * unit_bytes()


def test_tied_resident_tensors_stay_tied() -> None:
    machine = emulated()
    model, x = stack(), example_input()
    model.tail = nn.Linear(32, 32)
    model.tail.weight = model.head.weight
    model.tail.bias.data = model.head.bias.data
    expected = model(x)
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        assert model.tail.weight is model.head.weight
        assert model.tail.bias.data_ptr() == model.head.bias.data_ptr()
        assert torch.equal(machine.run(model, x), expected)


def test_a_unit_whose_tensors_are_all_empty_streams_nothing() -> None:
    machine = emulated()
    model = stack(2)
    part(model, "blocks.0").register_buffer("nothing", torch.zeros(0, 4))
    plan = plan_for(model, machine, home=lambda name: "emulated:1" if "nothing" in name else None)
    with place(model, plan, backend=machine.make_backend()) as handle:
        assert handle.stats().held_bytes == {"emulated:0": plan.size_bytes, "emulated:1": 0}
        assert not part(model, "blocks.0")._forward_pre_hooks


class Big(nn.Module):
    """A few units of one large tensor each."""

    def __init__(self, megabytes: int, units: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(256, megabytes << 10, bias=False) for _ in range(units))

    def forward(self, x: Any) -> Any:
        return x


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - a device file
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(not torch.sys.platform.startswith("linux"), reason="reads /proc")  # type: ignore[attr-defined]
def test_placing_never_holds_more_than_the_model_and_two_units() -> None:
    machine = same_device()
    # Above 32 MiB an allocation has pages of its own, which free() gives back at once, whatever was freed before.
    megabytes, units = 40, 5
    model = Big(megabytes, units).requires_grad_(False)
    plan = plan_for(model, machine)
    gc.collect()
    start = resident_bytes()
    peak: list[int] = []
    place(
        model, plan, backend=machine.make_backend(), progress=lambda done, total: peak.append(resident_bytes())
    ).remove()
    assert max(peak) - start < 2 * (megabytes << 20)


def test_a_plan_may_list_the_units_in_another_order() -> None:
    machine = emulated()
    model, x = stack(), example_input()
    expected = model(x)
    plan = plan_for(model, machine)
    plan = replace(plan, units=(*reversed(plan.units[:5]), plan.units[5]))
    with place(model, plan, backend=machine.make_backend()) as handle:
        for _ in range(4):
            assert torch.equal(machine.run(model, x), expected)
        learnt = handle.stats().surprises
        assert 0 < learnt <= 6
        machine.run(model, x)
        assert handle.stats().surprises == learnt


def test_a_model_that_is_one_streamed_unit_is_a_unit() -> None:
    machine = emulated()
    model, x = nn.Linear(32, 32).eval(), example_input()
    expected = model(x)
    homes = tuple(
        TensorHome(name=name, size_bytes=value.nbytes, device="emulated:1") for name, value in model.named_parameters()
    )
    unit = UnitPlacement(path="", class_name="Linear", kind="leaf", homes=homes)
    plan = PlacementPlan(compute="emulated:0", donors=("emulated:1",), policy="stripe", slots=1, units=(unit,))
    with place(model, plan, backend=machine.make_backend()) as handle:
        for _ in range(2):
            assert torch.equal(machine.run(model, x), expected)
        assert handle.stats().calls == 2


def test_stack_has_the_size_these_tests_count_on() -> None:
    assert isinstance(stack(), Stack)
    assert unit_bytes() == 2 * 8192 + 4 * 512
