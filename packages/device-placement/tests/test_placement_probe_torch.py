"""What is asked of torch for kinds of devices that are not here: their modules are stand-ins."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from device_placement import DeviceUnavailableError
from device_placement.machine._torch_machine import TorchMachine

GIB = 1 << 30


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The module that torch has for every type of device in this test."""
    stand_in = SimpleNamespace()
    monkeypatch.setattr(torch, "get_device_module", lambda device: stand_in)
    return stand_in


def test_memory_that_torch_keeps_in_reserve_is_free_for_us(module: SimpleNamespace) -> None:
    module.mem_get_info = lambda device: (10 * GIB, 24 * GIB)
    module.memory_reserved = lambda device: 5 * GIB
    module.memory_allocated = lambda device: 3 * GIB
    assert TorchMachine().memory("cuda:0") == (12 * GIB, 24 * GIB)


def test_no_more_is_free_than_there_is(module: SimpleNamespace) -> None:
    module.mem_get_info = lambda device: (23 * GIB, 24 * GIB)
    module.memory_reserved = lambda device: 5 * GIB
    module.memory_allocated = lambda device: 3 * GIB
    assert TorchMachine().memory("xpu:0") == (24 * GIB, 24 * GIB)


def test_unified_memory_is_shared_with_the_host(module: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    module.recommended_max_memory = lambda: 12 * GIB
    module.driver_allocated_memory = lambda: 2 * GIB
    for host_free, expected in ((64 * GIB, 10 * GIB), (4 * GIB, 4 * GIB), (0, 0)):
        monkeypatch.setattr(
            "device_placement.machine._torch_machine.host_memory", lambda free=host_free: (free, 64 * GIB)
        )
        assert TorchMachine().memory("mps") == (expected, 12 * GIB)


def test_a_module_that_does_not_tell_its_memory_is_an_error_with_a_way_out(module: SimpleNamespace) -> None:
    with pytest.raises(DeviceUnavailableError, match=r"by hand with Hardware\(\.\.\.\)"):
        TorchMachine().memory("hpu:0")


def test_labels_come_from_the_module_and_may_be_missing(module: SimpleNamespace) -> None:
    assert TorchMachine().label("xpu:0") == ""
    module.get_device_name = lambda device: f"Card {device.index}"
    assert TorchMachine().label("xpu:1") == "Card 1"
    assert TorchMachine().label("cpu") == TorchMachine().label("mps") == ""


def test_accelerators_are_numbered_unless_there_can_be_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 1)
    for kind, names, current in [("xpu", ("xpu:0", "xpu:1"), "xpu:1"), ("mps", ("mps",), "mps")]:
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available, k=kind: torch.device(k))
        assert TorchMachine().accelerators() == names
        assert TorchMachine().current() == current


def test_without_an_accelerator_there_is_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert TorchMachine().accelerators() == ()
    assert TorchMachine().current() == "cpu"
