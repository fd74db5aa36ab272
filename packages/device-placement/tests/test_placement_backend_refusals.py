"""What a machine answers when it cannot: errors that mean "no room", or "no such device", or neither."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import types
from typing import Any

import pytest
import torch
from placement_models import Block, accelerator, emulated, example_input, part, plan_for, stack
from torch import Tensor, nn

from device_placement import (
    AcceleratorBackend,
    DevicesFullError,
    DeviceUnavailableError,
    EmulatedBackend,
    Link,
    PlacementPlan,
    SameDeviceBackend,
    TensorHome,
    UnitPlacement,
    place,
)
from device_placement.copying._worker import Worker
from device_placement.machine._allocation import AllocationRefused, allocate_or_refuse
from device_placement.machine._host_memory import host_memory

GIB = 1 << 30


def test_an_error_that_is_not_about_memory_is_not_taken_for_a_refusal() -> None:
    with pytest.raises(RuntimeError, match="negative"):
        allocate_or_refuse(-1, torch.device("meta"))


def test_more_than_the_host_has_is_a_refusal() -> None:
    with pytest.raises(AllocationRefused) as caught:
        allocate_or_refuse(1 << 60, torch.device("cpu"))
    assert "\n" not in caught.value.answer


@pytest.mark.parametrize(("answer", "kept"), [("", "out of memory"), ("  \n", "out of memory"), (" a\nb", "a")])
def test_a_refusal_keeps_one_line(answer: str, kept: str) -> None:
    assert AllocationRefused(answer).answer == kept


def test_the_same_device_never_knows_what_is_free() -> None:
    assert SameDeviceBackend().free_bytes("cpu") is None


def test_without_an_accelerator_an_accelerator_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    with pytest.raises(DeviceUnavailableError, match="this process sees none; check the driver"):
        AcceleratorBackend(pin_budget_bytes=0).device("cuda:0")


@pytest.mark.parametrize("name", ["cuda:0", "sim:99", "nonsense", "sim:-1"])
def test_devices_that_are_not_there_are_named(sim: types.ModuleType, name: str) -> None:
    assert sim is not None
    with pytest.raises(DeviceUnavailableError, match=f"device '{name}' cannot be used") as caught:
        AcceleratorBackend(pin_budget_bytes=0).device(name)
    assert caught.value.device == name


def test_forwards_on_the_cpu_have_no_streams(sim: types.ModuleType) -> None:
    assert sim is not None
    with pytest.raises(DeviceUnavailableError, match="use SameDeviceBackend"):
        AcceleratorBackend(pin_budget_bytes=0).open("cpu", {})


def test_a_device_whose_module_does_not_tell_its_memory_is_simply_tried(
    sim: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sim is not None
    backend = AcceleratorBackend(pin_budget_bytes=0)
    assert backend.free_bytes("sim:0") is not None
    monkeypatch.delattr(type(torch.get_device_module("sim")), "mem_get_info")
    assert backend.free_bytes("sim:0") is None


def test_an_accelerator_in_the_plan_chooses_its_backend(sim: types.ModuleType) -> None:
    machine = accelerator(sim)
    model, x = stack(), example_input()
    expected = model(x)
    with place(model, plan_for(model, machine)):
        assert torch.equal(machine.run(model, x), expected)


def test_the_compute_device_is_no_refuge_for_what_a_donor_refuses() -> None:
    """The host, where everything may go at last, is the compute device here."""
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    home = TensorHome(name="0.weight", size_bytes=256, device="d:0")
    unit = UnitPlacement(path="0", class_name="Linear", kind="block", homes=(home,))
    plan = PlacementPlan(compute="cpu", donors=("d:0",), policy="stripe", slots=1, units=(unit,))
    backend = EmulatedBackend([Link(source="d:0", target="cpu", gb_per_second=1)], capacities={"d:0": 128})
    with pytest.raises(DevicesFullError, match="streamed share of '0'") as caught:
        place(model, plan, backend=backend)
    assert list(caught.value.refusals) == ["d:0"]


class Borrowing(nn.Module):
    """Its parent never calls it, but a part of it, which calls another part."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Lending()
        self.second = Block()


class Lending(Block):
    """Calls what it is lent."""

    def forward(self, x: Tensor, other: nn.Module | None = None) -> Tensor:
        y = super().forward(x)
        return y if other is None else y + other(x)


class Lender(nn.Module):
    """Calls the first part of each unit, and lends it the second."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Borrowing() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for index in range(3):
            unit = part(self, f"blocks.{index}")
            x = unit.first(x, unit.second)
        return x


def test_a_part_that_is_called_inside_another_part_finds_its_weights_there() -> None:
    machine = emulated()
    torch.manual_seed(0)
    model, x = Lender().eval().requires_grad_(False), example_input()
    expected = model(x)
    with place(model, plan_for(model, machine), backend=machine.make_backend()) as handle:
        for _ in range(3):
            assert torch.equal(machine.run(model, x), expected)
        assert handle.stats().uncalled == ()
        assert handle.stats().copies == 3 * 3 + 2, "and two are fetched ahead"


def test_a_worker_that_is_forgotten_by_its_own_job_does_not_wait_for_itself() -> None:
    holder = [Worker("forgetful")]
    forgotten = threading.Event()

    def forget() -> None:
        holder.clear()
        forgotten.set()

    job = holder[0].give(forget)
    job.wait()
    job.raise_error()
    assert forgotten.is_set()
    for thread in [thread for thread in threading.enumerate() if thread.name == "forgetful"]:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_mac_is_asked_by_vm_stat(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free: 1000.\nPages inactive: 24.\n"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 16384, "SC_PHYS_PAGES": 1_000_000}[name])
    ran: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr(subprocess, "run", run)
    assert host_memory() == (1024 * 16384, 16_384_000_000)
    assert ran == [["vm_stat"]]


@pytest.mark.parametrize("error", [FileNotFoundError("vm_stat"), subprocess.CalledProcessError(1, "vm_stat")])
def test_a_mac_without_vm_stat_is_told_how_to_go_on(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(DeviceUnavailableError, match=r"vm_stat.*by hand with Hardware\(\.\.\.\)"):
        host_memory()


@pytest.mark.parametrize("answers", [True, False])
def test_windows_is_asked_by_its_api(monkeypatch: pytest.MonkeyPatch, answers: bool) -> None:
    """The structure is laid out as MEMORYSTATUSEX is: a length of 64, the physical bytes at 8 and 16."""

    def memory_status(reference: Any) -> int:
        address = ctypes.cast(reference, ctypes.c_void_p).value
        assert address is not None
        assert ctypes.string_at(address, 4) == (64).to_bytes(4, "little")
        ctypes.memmove(address + 8, (64 * GIB).to_bytes(8, "little"), 8)
        ctypes.memmove(address + 16, (48 * GIB).to_bytes(8, "little"), 8)
        return int(answers)

    windll = types.SimpleNamespace(kernel32=types.SimpleNamespace(GlobalMemoryStatusEx=memory_status))
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", windll, raising=False)
    if answers:
        assert host_memory() == (48 * GIB, 64 * GIB)
    else:
        with pytest.raises(DeviceUnavailableError, match="GlobalMemoryStatusEx failed"):
            host_memory()
