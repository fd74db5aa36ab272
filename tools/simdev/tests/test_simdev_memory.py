"""Capacities and accounts: what a device holds, what it refuses, and that every byte comes back."""

from __future__ import annotations

import os
import types
from pathlib import Path

import pytest
import torch

import simdev

MIB = 1 << 20


def bytes_on(index: int, size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=torch.device("sim", index))


def test_a_device_holds_exactly_its_capacity(sim: types.ModuleType) -> None:
    sim.set_capacity(1, 3 * MIB)
    held = [bytes_on(1, MIB) for _ in range(3)]
    with pytest.raises(torch.OutOfMemoryError):
        bytes_on(1, 1)
    held.pop()
    held.append(bytes_on(1, MIB))
    assert sim.mem(1).used == sim.mem(1).peak == 3 * MIB
    assert sim.mem(1).ooms == 1


def test_a_refusal_names_device_request_capacity_and_what_is_free(sim: types.ModuleType) -> None:
    sim.set_capacity(2, 4 * MIB)
    held = bytes_on(2, MIB)
    with pytest.raises(torch.OutOfMemoryError) as refused:
        bytes_on(2, 8 * MIB)
    assert held.device.index == 2
    expected = (
        "Tried to allocate 8388608 bytes on sim:2, which has a capacity of 4194304 bytes, of which 3145728 are free"
    )
    assert expected in str(refused.value)


def test_a_refused_allocation_takes_nothing(sim: types.ModuleType) -> None:
    sim.set_capacity(0, MIB)
    before = sim.mem(0)
    for _ in range(5):
        with pytest.raises(torch.OutOfMemoryError):
            bytes_on(0, 2 * MIB)
    after = sim.mem(0)
    assert (after.used, after.allocs, after.peak) == (before.used, before.allocs, before.peak)
    assert after.ooms == 5


def test_a_result_that_does_not_fit_is_refused_as_any_allocation(sim: types.ModuleType) -> None:
    a = bytes_on(0, MIB)
    sim.set_capacity(0, 2 * MIB - 1)
    with pytest.raises(torch.OutOfMemoryError):
        a + a
    assert sim.mem(0).used == MIB


def test_a_copy_that_does_not_fit_is_refused_and_crosses_no_link(sim: types.ModuleType) -> None:
    sim.set_capacity(3, MIB - 1)
    with pytest.raises(torch.OutOfMemoryError):
        torch.zeros(MIB, dtype=torch.uint8).to("sim:3")
    assert sim.links() == ()


def test_a_capacity_below_what_is_used_refuses_the_next(sim: types.ModuleType) -> None:
    held = bytes_on(0, 2 * MIB)
    sim.set_capacity(0, MIB)
    assert torch.accelerator.get_memory_info(0) == (0, MIB)
    with pytest.raises(torch.OutOfMemoryError, match="of which 0 are free"):
        bytes_on(0, 1)
    del held
    bytes_on(0, 1)


@pytest.mark.parametrize(("size", "charged"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_an_allocation_is_rounded_up_to_512(sim: types.ModuleType, size: int, charged: int) -> None:
    held = bytes_on(0, size)
    assert held.numel() == size
    assert sim.mem(0).used == charged


def test_results_of_operators_are_charged_and_freed(sim: types.ModuleType) -> None:
    a = torch.ones(256, 256, device="sim:1")
    one = sim.mem(1).used
    b = a @ a
    assert sim.mem(1).used == 2 * one
    del b
    assert sim.mem(1).used == one
    a.add_(1)
    assert sim.mem(1).used == one


def test_each_device_has_its_own_account(sim: types.ModuleType) -> None:
    held = [bytes_on(index, (index + 1) * MIB) for index in range(4)]
    assert [sim.mem(index).used for index in range(4)] == [t.numel() for t in held]


def test_moving_a_module_moves_its_bytes(sim: types.ModuleType) -> None:
    module = torch.nn.Linear(128, 128, bias=False).to("sim:0")
    assert [sim.mem(index).used for index in range(2)] == [65536, 0]
    module.to("sim:1")
    assert [sim.mem(index).used for index in range(2)] == [0, 65536]


def test_the_peak_counts_from_the_last_reset(sim: types.ModuleType) -> None:
    held = bytes_on(0, MIB)
    bytes_on(0, 3 * MIB)
    assert sim.mem(0).peak == 4 * MIB
    sim.reset()
    assert sim.mem(0).peak == held.numel() == MIB


def test_a_converting_copy_needs_its_temporary(sim: types.ModuleType) -> None:
    """A non_blocking copy converts on the device: the bytes cross as they are, and need room there for a moment."""
    source = torch.ones(MIB // 4).pin_memory()
    sim.set_capacity(0, MIB)
    target = torch.empty(MIB // 4, dtype=torch.float16, device="sim:0")
    with pytest.raises(torch.OutOfMemoryError):
        target.copy_(source, non_blocking=True)
    target.copy_(source)
    assert sim.mem(0).peak == MIB // 2


def test_resizing_a_storage_gives_memory_back(sim: types.ModuleType) -> None:
    t = bytes_on(0, MIB)
    t.untyped_storage().resize_(0)
    assert sim.mem(0).used == 0
    t.untyped_storage().resize_(2 * MIB)
    assert sim.mem(0).used == 2 * MIB


def test_resizing_stays_on_the_device_of_the_tensor(sim: types.ModuleType) -> None:
    t = torch.ones(8, device="sim:3")
    t.resize_(2, 3, 4, 4, memory_format=torch.channels_last)
    assert (sim.mem(0).used, sim.mem(3).used) == (0, 512)
    assert t.is_contiguous(memory_format=torch.channels_last)
    t[0].resize_(10)
    assert t.untyped_storage().nbytes() == 2 * 3 * 4 * 4 * 4


def test_resizing_keeps_the_bytes_that_stay(sim: types.ModuleType) -> None:
    t = torch.arange(8, device="sim:0")
    t.resize_(1000)
    assert t[:8].tolist() == list(range(8))
    assert sim.mem(0).used == 8192


def test_resizing_carries_out_what_waits_for_the_old_bytes(sim: types.ModuleType) -> None:
    t = torch.empty(8, device="sim:0")
    t.copy_(torch.arange(8.0).pin_memory(), non_blocking=True)
    t.resize_(1000)
    assert t[:8].tolist() == list(range(8))


def test_out_grows_to_the_result(sim: types.ModuleType) -> None:
    out = torch.empty(0, device="sim:0")
    torch.add(torch.ones(100, device="sim:0"), 1, out=out)
    assert out.tolist() == [2.0] * 100


def test_pinned_memory_has_an_account(sim: types.ModuleType) -> None:
    before = sim.pinned_bytes()
    held = torch.empty(MIB, dtype=torch.uint8).pin_memory()
    torch.empty(2 * MIB, dtype=torch.uint8, pin_memory=True)
    assert sim.pinned_bytes() - before == held.numel()
    assert sim.pinned_bytes(peak=True) - before == 3 * MIB


def test_a_driver_may_refuse_to_pin(sim: types.ModuleType) -> None:
    sim.set_pinned_capacity(sim.pinned_bytes() + MIB)
    held = torch.empty(MIB, dtype=torch.uint8).pin_memory()
    with pytest.raises(RuntimeError, match="pinned host") as refused:
        torch.empty(1).pin_memory()
    assert not isinstance(refused.value, torch.OutOfMemoryError), "the host is not a device that is full"
    sim.set_pinned_capacity(None)
    assert torch.empty(1).pin_memory().is_pinned() and held.is_pinned()


def test_torch_accelerator_tells_the_same_numbers(sim: types.ModuleType) -> None:
    held = bytes_on(1, 5 * MIB)
    stats = torch.accelerator.memory_stats(1)
    assert torch.accelerator.memory_allocated(1) == torch.accelerator.memory_reserved(1) == held.numel()
    assert torch.accelerator.get_memory_info(1) == (251 * MIB, 256 * MIB)
    assert stats["allocated_bytes.all.peak"] == sim.mem(1).peak
    assert stats["num_ooms"] == 0


def test_the_device_module_tells_the_same_numbers(sim: types.ModuleType) -> None:
    module = torch.get_device_module("sim")
    held = bytes_on(1, 5 * MIB)
    assert module.memory_allocated("sim:1") == module.memory_reserved(1) == held.numel()
    assert module.mem_get_info(torch.device("sim", 1)) == (251 * MIB, 256 * MIB)
    assert module.get_device_properties(1).total_memory == 256 * MIB
    assert module.memory_stats(1)["allocated_bytes.all.current"] == held.numel()
    assert module.max_memory_allocated(1) == held.numel()


def test_memory_comes_back_whatever_frees_it(sim: types.ModuleType) -> None:
    before = [sim.mem(index).used for index in range(4)]
    side = torch.Stream(device="sim:0")
    for _ in range(50):
        source = torch.ones(64, 64).pin_memory()
        with side:
            fetched = source.to("sim:0", non_blocking=True)
        del source, fetched  # before the copy ran
    cycle: list[object] = [bytes_on(2, MIB)]
    cycle.append(cycle)
    del cycle
    assert [sim.mem(index).used for index in range(2)] == before[:2]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the resident size from /proc")
def test_freed_memory_goes_back_to_the_system(sim: types.ModuleType) -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident_bytes()
    for _ in range(20):
        bytes_on(0, 48 * MIB)
    assert resident_bytes() - before < 400 * MIB


def test_bytes_of_a_freed_source_still_arrive(sim: types.ModuleType) -> None:
    target = torch.zeros(64, device="sim:0")
    target.copy_(torch.full((64,), 3.0).pin_memory(), non_blocking=True)
    reused = [torch.full((64,), 9.0).pin_memory() for _ in range(8)]
    assert target.sum().item() == 192
    assert len(reused) == 8


def test_only_copies_that_somebody_can_see_count_as_queued(sim: types.ModuleType) -> None:
    source = torch.ones(64).pin_memory()
    seen = torch.empty(64, device="sim:0")
    seen.copy_(source, non_blocking=True)
    unseen = source.to("sim:0", non_blocking=True)
    assert sim.counters().queued == 2
    del unseen
    assert sim.counters().queued == 1
    torch.accelerator.synchronize(0)
    assert sim.counters().queued == 0


@pytest.mark.parametrize("device", [-1, 4])
def test_a_device_that_is_not_there_is_named(sim: types.ModuleType, device: int) -> None:
    for call in (
        lambda: simdev.mem(device),
        lambda: simdev.set_capacity(device, 1),
        lambda: simdev.corrupt_link(0, device),
    ):
        with pytest.raises(ValueError, match=f"no simulated device {device}; they are numbered 0 to 3"):
            call()


def test_a_negative_capacity_is_refused(sim: types.ModuleType) -> None:
    with pytest.raises(ValueError, match="-1"):
        simdev.set_capacity(0, -1)
    with pytest.raises(ValueError, match="-1"):
        simdev.set_pinned_capacity(-1)
