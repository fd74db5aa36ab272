"""The engine on CUDA: page-locking with a driver made of paper, and everything else where there is a card."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from placement_models import Machine, example_input, plan_for, stack

from device_placement import AcceleratorBackend, place
from device_placement.copying._pinning import HostMemory
from device_placement.machine import _cuda
from device_placement.machine._allocation import AllocationRefused

PAGE = 4096


@dataclass
class PaperDriver:
    """Remembers what is locked, and refuses from a number of bytes on."""

    limit_bytes: int = 1 << 40
    locked: dict[int, int] = field(default_factory=dict)
    waits: int = 0

    def cudaHostRegister(self, pointer: int, size_bytes: int, flags: int) -> int:
        assert pointer % PAGE == size_bytes % PAGE == 0
        assert flags == 1
        for start, size in self.locked.items():
            assert pointer >= start + size or pointer + size_bytes <= start, "a page is locked twice"
        if sum(self.locked.values()) + size_bytes > self.limit_bytes:
            return 2
        self.locked[pointer] = size_bytes
        return 0

    def cudaHostUnregister(self, pointer: int) -> int:
        del self.locked[pointer]
        return 0

    def wait(self) -> None:
        """What torch.cuda.synchronize does."""
        self.waits += 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> PaperDriver:
    paper = PaperDriver()
    monkeypatch.setattr(_cuda, "_runtime", lambda: paper)
    monkeypatch.setattr(torch.cuda, "synchronize", paper.wait)
    return paper


@pytest.mark.parametrize("size_bytes", [1, PAGE - 1, PAGE, PAGE + 1, 100_000])
def test_a_buffer_is_locked_in_whole_pages_and_has_its_own_size(driver: PaperDriver, size_bytes: int) -> None:
    buffers = [_cuda.registered_buffer(size_bytes) for _ in range(4)]
    assert {buffer.numel() for buffer in buffers} == {size_bytes}
    assert list(driver.locked) == [buffer.data_ptr() for buffer in buffers]
    assert all(0 <= size - size_bytes < PAGE for size in driver.locked.values())
    for number, buffer in enumerate(buffers):
        buffer.fill_(number)
    assert [int(buffer[-1]) for buffer in buffers] == [0, 1, 2, 3]


def test_the_storage_of_a_buffer_starts_where_the_lock_does(driver: PaperDriver) -> None:
    # Tensor.is_pinned asks the driver about the first byte of the storage, whichever part of it the tensor shows.
    buffers = [_cuda.registered_buffer(1000) for _ in range(4)]
    assert [buffer[500:].untyped_storage().data_ptr() for buffer in buffers] == list(driver.locked)


@pytest.mark.gpu
def test_a_card_sees_that_a_registered_buffer_is_pinned() -> None:
    buffer = _cuda.registered_buffer(1000)
    assert buffer.is_pinned()
    assert buffer[500:].is_pinned()


def test_a_buffer_that_goes_is_unlocked_after_the_device_is_done(driver: PaperDriver) -> None:
    buffer = _cuda.registered_buffer(1000)
    view = buffer[:10].fill_(7)
    storage = weakref.ref(buffer)
    del buffer
    gc.collect()
    assert storage() is None
    assert (driver.locked, driver.waits) == ({}, 1)
    assert view.tolist() == [7] * 10


def test_a_refused_lock_is_an_answer_of_the_device(driver: PaperDriver) -> None:
    driver.limit_bytes = PAGE
    buffer = _cuda.registered_buffer(PAGE)
    with pytest.raises(AllocationRefused, match="cudaHostRegister of 4 KiB answered 2"):
        _cuda.registered_buffer(1)
    assert list(driver.locked) == [buffer.data_ptr()]


def test_after_a_refused_lock_the_error_it_left_is_cleared_and_nobody_asks_again(
    driver: PaperDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleared: list[torch.device] = []
    monkeypatch.setattr(_cuda, "clear_error", cleared.append)
    driver.limit_bytes = 2 * PAGE
    host, reader = HostMemory(1 << 30), torch.device("cuda:0")
    buffers = [host.allocate(PAGE, reader) for _ in range(5)]
    assert len(driver.locked) == 2
    assert host.pinned_bytes == 2 * PAGE
    assert cleared == [reader]
    assert {buffer.numel() for buffer in buffers} == {PAGE}
    assert host.bounce_buffers(2, PAGE, reader) == []
    assert cleared == [reader, reader]


# ------------------------------------------------------------------------------------------------------- on a real card


def card(donors: tuple[str, ...] = ("cpu",)) -> Machine:
    """The first card and its donors."""
    return Machine(name="accelerator", compute="cuda:0", donors=donors, make_backend=AcceleratorBackend)


@pytest.mark.gpu
def test_a_card_computes_the_same_bits_placed_and_resident_without_a_host_wait() -> None:
    model, x = stack(8, width=256), example_input(width=256).cuda()
    with torch.no_grad():
        expected = stack(8, width=256).cuda()(x)
        with place(model, plan_for(model, card()), backend=AcceleratorBackend()) as handle:
            assert torch.equal(model(x), expected)
            torch.cuda.set_sync_debug_mode("error")
            try:
                results = [model(x) for _ in range(5)]
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert all(torch.equal(result, expected) for result in results)
            assert handle.stats().pinned_bytes == handle.stats().held_bytes["cpu"] > 0


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"pin_budget_bytes": 0}, {"pin_budget_bytes": 0, "bounce_bytes": 0}])
def test_a_card_reads_memory_that_is_not_pinned(options: dict[str, Any]) -> None:
    model, x = stack(8, width=256), example_input(width=256).cuda()
    with torch.no_grad():
        expected = stack(8, width=256).cuda()(x)
        with place(model, plan_for(model, card()), backend=AcceleratorBackend(**options)) as handle:
            assert all(torch.equal(model(x), expected) for _ in range(3))
            assert handle.stats().pinned_bytes == 0


@pytest.mark.gpu
def test_a_card_has_its_memory_back_after_fifty_placements() -> None:
    model, x, backend = stack(8, width=256), example_input(width=256).cuda(), AcceleratorBackend()
    used = []
    for _ in range(50):
        with torch.no_grad(), place(model, plan_for(model, card()), backend=backend):
            model(x)
        model.cpu()
        gc.collect()
        used.append((torch.cuda.memory_allocated(), backend.pinned_bytes))
    assert len(set(used[1:])) == 1


@pytest.mark.gpu
def test_two_cards_serve_as_compute_device_and_donor() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    model, x = stack(8, width=256), example_input(width=256).cuda()
    with torch.no_grad():
        expected = stack(8, width=256).cuda()(x)
        with place(model, plan_for(model, card(("cuda:1", "cpu"))), backend=AcceleratorBackend()):
            assert all(torch.equal(model(x), expected) for _ in range(3))
