"""What every backend must do; whoever writes another one adds it to `placement_models.MACHINES`."""

from __future__ import annotations

import pytest
import torch
from placement_models import MACHINES, Machine, example_input, machine_named, plan_for, stack

from device_placement import DeviceUnavailableError, place
from device_placement.machine._allocation import AllocationRefused


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


@pytest.fixture(params=[name for name in MACHINES if name != "same_device"])
def copying_machine(request: pytest.FixtureRequest) -> Machine:
    return machine_named(request.param, request)


def test_memory_is_flat_bytes_on_the_device(machine: Machine) -> None:
    backend = machine.make_backend()
    for name in (machine.compute, *machine.donors):
        buffer = backend.allocate(name, 1000)
        assert (buffer.dtype, buffer.shape, buffer.device) == (torch.uint8, (1000,), backend.device(name))


def test_a_device_without_room_refuses(machine: Machine) -> None:
    for name in (machine.compute, *machine.donors):
        with pytest.raises(AllocationRefused) as refusal:
            machine.make_backend().allocate(name, 1 << 60)
        assert refusal.value.answer


def test_free_memory_is_a_number_of_bytes_or_unknown(machine: Machine) -> None:
    for name in (machine.compute, *machine.donors):
        free_bytes = machine.make_backend().free_bytes(name)
        assert free_bytes is None or free_bytes > 0


def test_a_gate_delivers_what_was_filled_in_last(copying_machine: Machine) -> None:
    machine = copying_machine
    backend = machine.make_backend()
    streamer = backend.open(machine.compute, dict.fromkeys(machine.donors, 4096))
    slot = backend.allocate(machine.compute, 4096)
    gate = streamer.gate(slot)
    sources = []
    for number, donor in enumerate(machine.donors * 4):
        sources.append(backend.allocate(donor, 4096).fill_(number + 1))
        gate.fill([streamer.transfer(donor, sources[-1], slot)])
        if number % 3:  # what is not read is overwritten unread
            assert gate.arrive() >= 0
            assert bool((slot == number + 1).all())
            gate.release()
    streamer.synchronize()
    streamer.close()


def test_a_slot_filled_from_several_donors_is_complete_when_it_arrives(copying_machine: Machine) -> None:
    machine = copying_machine
    backend = machine.make_backend()
    streamer = backend.open(machine.compute, dict.fromkeys(machine.donors, 512))
    slot = backend.allocate(machine.compute, 512 * len(machine.donors))
    gate = streamer.gate(slot)
    sources = [backend.allocate(donor, 512).fill_(number) for number, donor in enumerate(machine.donors)]
    parts = slot.view(len(sources), 512)
    gate.fill(
        [
            streamer.transfer(donor, source, part)
            for donor, source, part in zip(machine.donors, sources, parts, strict=True)
        ]
    )
    gate.arrive()
    assert parts.float().mean(1).cpu().tolist() == list(range(len(sources)))
    gate.release()
    streamer.synchronize()
    streamer.close()


def test_a_read_slot_can_be_read_again(copying_machine: Machine) -> None:
    machine = copying_machine
    backend = machine.make_backend()
    streamer = backend.open(machine.compute, {machine.donors[0]: 512})
    slot = backend.allocate(machine.compute, 512)
    gate = streamer.gate(slot)
    source = backend.allocate(machine.donors[0], 512).fill_(7)
    gate.fill([streamer.transfer(machine.donors[0], source, slot)])
    for _ in range(3):
        gate.arrive()
        assert int(slot.sum()) == 7 * 512
        gate.release()
    streamer.synchronize()
    streamer.close()


@pytest.mark.parametrize("slots", [1, 2, 3, 9])
def test_the_output_is_bit_equal_whatever_the_number_of_slots(machine: Machine, slots: int) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with place(model, plan_for(model, machine, slots=slots), backend=machine.make_backend()):
        for _ in range(4):
            assert torch.equal(machine.run(model, x), expected)


def test_striped_units_are_bit_equal(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    plan = plan_for(model, machine, home=lambda name: machine.donors[0] if "up" in name else None)
    with place(model, plan, backend=machine.make_backend()):
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)


def test_every_tensor_is_where_the_plan_says(machine: Machine) -> None:
    model = stack()
    backend = machine.make_backend()
    plan = plan_for(model, machine)
    with place(model, plan, backend=backend) as handle:
        tensors = dict(model.named_parameters())
        for unit in plan.units:
            for home in unit.homes:
                assert tensors[home.name].device == backend.device(home.device)
        held = handle.stats().held_bytes
    assert set(held) == {machine.compute, *machine.donors}
    copies = machine.name != "same_device"
    assert held[machine.compute] == plan.bytes_on(machine.compute) + copies * plan.slots * plan.slot_bytes
    for donor in machine.donors:
        homes = [home for unit in plan.units for home in unit.homes if home.device == donor]
        assert held[donor] == sum(-(-home.size_bytes // 512) * 512 for home in homes)


def test_an_edit_at_home_reaches_the_next_forward(machine: Machine) -> None:
    model, x = stack(), example_input()
    with place(model, plan_for(model, machine), backend=machine.make_backend()):
        before = machine.run(model, x)
        with torch.no_grad():
            for parameter in model.blocks.parameters():
                parameter.mul_(1.25)
        changed = machine.run(model, x)
    unplaced = stack()
    with torch.no_grad():
        for parameter in unplaced.blocks.parameters():
            parameter.mul_(1.25)
    assert torch.equal(changed, unplaced(x))
    assert not torch.equal(changed, before)


def test_a_removed_placement_leaves_an_ordinary_model(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    handle = place(model, plan_for(model, machine), backend=machine.make_backend())
    machine.run(model, x)
    handle.remove(to="cpu")
    assert torch.equal(model(x), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_only_streamed_units_and_the_model_have_hooks(machine: Machine) -> None:
    model, x = stack(), example_input()
    plan = plan_for(model, machine, home=lambda name: machine.donors[0] if "blocks.2." in name else None)
    with place(model, plan, backend=machine.make_backend()):
        machine.run(model, x)
        hooked = [path for path, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
        assert hooked == ["", "blocks.2"]


def test_a_model_that_is_all_resident_has_no_hooks(machine: Machine) -> None:
    model, x = stack(), example_input()
    expected = model(x)
    with place(model, plan_for(model, machine, home=lambda name: None), backend=machine.make_backend()):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert torch.equal(machine.run(model, x), expected)


def test_accelerators_that_are_not_there_are_named(request: pytest.FixtureRequest) -> None:
    backend = machine_named("accelerator", request).make_backend()
    for name, reason in [("sim:99", "numbered from 0"), ("warp", "no device"), ("meta", "of the type")]:
        with pytest.raises(DeviceUnavailableError, match=reason):
            backend.device(name)
