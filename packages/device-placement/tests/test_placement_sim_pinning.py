"""Pinned memory is scarce: everything, or a ring of buffers, or none; the result is the same."""

from __future__ import annotations

import logging
import types

import pytest
import torch
from placement_models import Machine, accelerator, example_input, plan_for, stack

from device_placement import AcceleratorBackend, DeviceUnavailableError, place
from device_placement.copying import _pinning
from device_placement.copying._pinning import HostMemory, default_budget_bytes

SHARE = 18432
"""Bytes of one block of the stack, every tensor aligned."""


@pytest.fixture
def machine(sim: types.ModuleType) -> Machine:
    return accelerator(sim, donors=("cpu",))


def kinds(sim: types.ModuleType) -> dict[str, int]:
    """Bytes that went to the compute device since the last reset, by the kind of copy."""
    return {link.kind: link.bytes for link in sim.links() if link.dst == "sim:0"}


def run(sim: types.ModuleType, machine: Machine, backend: AcceleratorBackend) -> tuple[dict[str, int], int, int]:
    """Three passes: kinds of copies, bytes pinned for weights, bytes pinned in all."""
    model, x = stack(6), example_input()
    expected = model(x)
    pinned = sim.pinned_bytes()
    with place(model, plan_for(model, machine), backend=backend) as handle:
        assert torch.equal(machine.run(model, x), expected)
        on_device = x.to("sim:0")
        sim.reset()
        with torch.no_grad():
            results = [model(on_device) for _ in range(3)]
        assert all(torch.equal(result.cpu(), expected) for result in results)
        measured = kinds(sim), handle.stats().pinned_bytes, sim.pinned_bytes() - pinned
    assert backend.pinned_bytes == measured[1]
    return measured


def test_everything_is_pinned_within_the_budget(sim: types.ModuleType, machine: Machine) -> None:
    copies, weights, everything = run(sim, machine, AcceleratorBackend())
    assert copies == {"async": 3 * 6 * SHARE}
    assert weights == everything == 6 * SHARE


def test_what_is_over_the_budget_goes_through_pinned_buffers(sim: types.ModuleType, machine: Machine) -> None:
    copies, weights, everything = run(sim, machine, AcceleratorBackend(pin_budget_bytes=2 * SHARE, bounce_bytes=4096))
    assert copies == {"async": 3 * 6 * SHARE}
    assert weights == 2 * SHARE
    assert everything == 2 * SHARE + 4 * 4096


def test_a_refused_pin_is_normal(sim: types.ModuleType, machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    sim.set_pinned_capacity(sim.pinned_bytes() + 3 * SHARE + 2 * 4096)
    with caplog.at_level(logging.WARNING):
        copies, weights, everything = run(sim, machine, AcceleratorBackend(bounce_bytes=4096))
    assert copies == {"async": 3 * 6 * SHARE}
    assert weights == 3 * SHARE
    assert everything == 3 * SHARE + 2 * 4096
    assert "pinning 18 KiB was refused after 54 KiB" in caplog.text
    assert "2 of 4 bounce buffers could be pinned" in caplog.text


def test_without_any_pinned_memory_the_driver_stages(sim: types.ModuleType, machine: Machine) -> None:
    sim.set_pinned_capacity(sim.pinned_bytes())
    copies, weights, everything = run(sim, machine, AcceleratorBackend())
    assert copies == {"async-pageable": 3 * 6 * SHARE}
    assert weights == everything == 0


def test_bouncing_can_be_left_to_the_driver(sim: types.ModuleType, machine: Machine) -> None:
    copies, weights, everything = run(sim, machine, AcceleratorBackend(pin_budget_bytes=0, bounce_bytes=0))
    assert copies == {"async-pageable": 3 * 6 * SHARE}
    assert weights == everything == 0


def test_a_surprise_while_a_thread_is_still_copying_is_right(sim: types.ModuleType, machine: Machine) -> None:
    model, x = stack(6), example_input()
    orders = [[5, 4, 3, 2, 1, 0], [0, 2, 4], [3], [1, 1, 5]]
    expected = []
    for model.order in orders:
        expected.append(model(x))
    backend = AcceleratorBackend(pin_budget_bytes=3 * SHARE, bounce_bytes=1024)
    with place(model, plan_for(model, machine), backend=backend):
        for _ in range(3):
            for model.order, wanted in zip(orders, expected, strict=True):
                assert torch.equal(machine.run(model, x), wanted)


def test_the_budget_counts_what_is_pinned_now(sim: types.ModuleType) -> None:
    host = HostMemory(2048)
    device = torch.device("sim:0")
    buffers = [host.allocate(1024, device) for _ in range(3)]
    assert [buffer.is_pinned() for buffer in buffers] == [True, True, False]
    assert host.pinned_bytes == 2048
    buffers.clear()
    assert host.pinned_bytes == 0
    assert host.allocate(2048, device).is_pinned()


def test_half_of_the_memory_may_be_pinned_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pinning, "host_memory", lambda: (1, 64 << 30))
    assert default_budget_bytes() == 32 << 30


def test_memory_of_unknown_size_is_pinned_until_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> tuple[int, int]:
        raise DeviceUnavailableError("cpu", "nobody knows", "measure it")

    monkeypatch.setattr(_pinning, "host_memory", unknown)
    assert default_budget_bytes() is None
