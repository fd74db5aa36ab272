"""What crosses which link, in which kind of copy, and how often the host waits."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch

from simdev import Link

COUNT = 1024


def host(*, pinned: bool, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    t = torch.ones(COUNT, dtype=dtype)
    return t.pin_memory() if pinned else t


@pytest.mark.parametrize(
    ("pinned", "non_blocking", "kind", "waits"),
    [(True, True, "async", 0), (True, False, "sync", 1), (False, True, "async-pageable", 0), (False, False, "sync", 1)],
)
def test_a_copy_to_a_device(sim: types.ModuleType, pinned: bool, non_blocking: bool, kind: str, waits: int) -> None:
    fetched = host(pinned=pinned).to("sim:1", non_blocking=non_blocking)
    assert sim.links() == (Link(src="host", dst="sim:1", kind=kind, count=1, bytes=fetched.nbytes),)
    assert sim.counters().host_syncs == waits


@pytest.mark.parametrize(
    ("pinned", "non_blocking", "kind", "waits"),
    [(True, True, "async", 0), (True, False, "sync", 1), (False, True, "async-pageable", 1), (False, False, "sync", 1)],
)
def test_a_copy_from_a_device(sim: types.ModuleType, pinned: bool, non_blocking: bool, kind: str, waits: int) -> None:
    target = host(pinned=pinned)
    target.copy_(torch.zeros(COUNT, device="sim:2"), non_blocking=non_blocking)
    assert sim.links() == (Link(src="sim:2", dst="host", kind=kind, count=1, bytes=target.nbytes),)
    assert sim.counters().host_syncs == waits
    torch.accelerator.synchronize(2)


@pytest.mark.parametrize("non_blocking", [True, False])
def test_a_copy_between_devices_never_makes_the_host_wait(sim: types.ModuleType, non_blocking: bool) -> None:
    moved = torch.ones(COUNT, device="sim:3").to("sim:0", non_blocking=non_blocking)
    assert sim.links() == (Link(src="sim:3", dst="sim:0", kind="d2d", count=1, bytes=moved.nbytes),)
    assert sim.counters().host_syncs == 0


def test_a_copy_within_a_device_crosses_no_link(sim: types.ModuleType) -> None:
    torch.ones(COUNT, device="sim:0").clone()
    assert sim.links() == ()


def test_an_empty_copy_crosses_no_link(sim: types.ModuleType) -> None:
    torch.ones(0).to("sim:0")
    assert sim.links() == ()


@pytest.mark.parametrize(
    ("non_blocking", "wire"), [(False, torch.float16), (True, torch.float32)], ids=["host converts", "device converts"]
)
def test_a_converting_copy_crosses_in_the_type_of_the_side_that_does_not_convert(
    sim: types.ModuleType, non_blocking: bool, wire: torch.dtype
) -> None:
    target = torch.empty(COUNT, dtype=torch.float16, device="sim:0")
    target.copy_(host(pinned=True), non_blocking=non_blocking)
    (to_device,) = sim.links()
    back = host(pinned=True)
    back.copy_(target, non_blocking=non_blocking)
    assert to_device.bytes == COUNT * wire.itemsize
    assert {link.bytes for link in sim.links()} == {COUNT * wire.itemsize}
    torch.accelerator.synchronize(0)


def test_pinned_memory_that_must_be_gathered_first_is_pageable(sim: types.ModuleType) -> None:
    strided = torch.ones(COUNT, 2).pin_memory()[:, 0]
    strided.to("sim:0", non_blocking=True)
    assert [link.kind for link in sim.links()] == ["async-pageable"]


def test_a_transposed_weight_is_one_run_of_bytes(sim: types.ModuleType) -> None:
    weight = torch.ones(32, 8).pin_memory().T
    fetched = torch.empty_strided(weight.shape, weight.stride(), device="sim:0")
    fetched.copy_(weight, non_blocking=True)
    assert [link.kind for link in sim.links()] == ["async"]


def test_links_add_up_until_they_are_reset(sim: types.ModuleType) -> None:
    weight = host(pinned=True)
    for _ in range(3):
        weight.to("sim:0", non_blocking=True)
    weight.to("sim:0")
    assert sim.links() == (
        Link(src="host", dst="sim:0", kind="sync", count=1, bytes=weight.nbytes),
        Link(src="host", dst="sim:0", kind="async", count=3, bytes=3 * weight.nbytes),
    )
    sim.reset()
    assert sim.links() == ()


@pytest.mark.parametrize(
    ("name", "waits"),
    [("item", 1), ("nonzero", 1), ("mask", 1), ("set by mask", 1), ("index", 0), ("add", 0), ("equal", 1), ("cpu", 1)],
)
def test_the_host_waits_where_it_needs_values(sim: types.ModuleType, name: str, waits: int) -> None:
    a, mask, index = (
        torch.ones(8, device="sim:0"),
        torch.ones(8, device="sim:0") > 0,
        torch.zeros(2, device="sim:0").long(),
    )
    operators: dict[str, Callable[[], object]] = {
        "item": lambda: a[0].item(),
        "nonzero": lambda: a.nonzero(),
        "mask": lambda: a[mask],
        "set by mask": lambda: a.index_put_((mask,), torch.tensor(2.0)),
        "index": lambda: a[index],
        "add": lambda: a + 1,
        "equal": lambda: torch.equal(a, a),
        "cpu": lambda: a.cpu(),
    }
    sim.reset()
    operators[name]()
    assert sim.counters().host_syncs == waits


def test_operators_are_counted_by_name_on_request(sim: types.ModuleType) -> None:
    a = torch.ones(8, device="sim:0")
    a + 1
    assert sim.ops() == {}
    sim.count_ops()
    a + 1
    a.mul(2).sin()
    assert sim.ops() == {"aten::add": 1, "aten::mul": 1, "aten::sin": 1}
    sim.count_ops(False)
    a + 1
    assert sim.ops()["aten::add"] == 1


def test_a_corrupt_link_says_nothing_and_delivers_other_bytes(sim: types.ModuleType) -> None:
    source = torch.arange(1.0, 9.0, device="sim:1")
    sim.corrupt_link(1, 0)
    assert not torch.equal(source.to("sim:0").cpu(), source.cpu())
    assert torch.equal(source.to("sim:2").cpu(), source.cpu()), "the other links are sound"
    assert torch.equal(source.to("sim:0").to("sim:1").cpu(), source.to("sim:0").cpu()), "and so is the way back"
    sim.corrupt_link(1, 0, on=False)
    assert torch.equal(source.to("sim:0").cpu(), source.cpu())
