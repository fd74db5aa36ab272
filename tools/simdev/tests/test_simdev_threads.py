"""Threads: their own current stream and device, one order for all, and no deadlock with Python's interpreter lock."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

PATIENCE_SECONDS = 60.0


def in_threads(*bodies: Callable[[], None]) -> None:
    """Run bodies at once; fail if one raises or never ends."""
    errors: list[BaseException] = []

    def guarded(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread below
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for a lock that is never given back"
    if errors:
        raise errors[0]


def test_streams_and_devices_are_current_by_thread(sim: types.ModuleType) -> None:
    seen: list[tuple[int, int]] = []
    torch.accelerator.set_device_index(2)

    def look() -> None:
        seen.append((torch.accelerator.current_device_index(), torch.accelerator.current_stream(2).stream_id))

    with torch.Stream(device="sim:2"):
        in_threads(look)
    assert seen == [(0, 0)]


INTERPRETER_TRAP = """
import threading, torch, simdev
simdev.install("sim", 2)
over = threading.Event()

@torch.inference_mode()
def compute():  # boxed calls: the kernel drops the last reference that is not Python's, which takes the interpreter
    for _ in range(1000):
        x = torch.ones(100, 100, device="sim:0")
        torch.ops.aten.roll.default(x, [1])
        torch.ops.aten.native_layer_norm.default(x, [100], None, None, 1e-5)

def record():  # torch does not give the interpreter away around these
    side, main = torch.Stream(device="sim:1"), torch.accelerator.current_stream(1)
    while not over.is_set():
        main.wait_event(side.record_event())

threads = [threading.Thread(target=body) for body in (compute, compute, record)]
for thread in threads: thread.start()
for thread in threads[:2]: thread.join()
over.set()
"""


def test_a_thread_with_the_interpreter_does_not_wait_for_the_devices(sim: types.ModuleType) -> None:
    """Were it to wait, nothing in the process could run any more; so it is another process that tries."""
    tools = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", INTERPRETER_TRAP], cwd=tools, check=True, timeout=PATIENCE_SECONDS)


def test_threads_that_compute_allocate_and_ask_do_not_disturb_each_other(sim: types.ModuleType) -> None:
    shared = [torch.ones(64, 64, device="sim:0") for _ in range(8)]
    torch.accelerator.synchronize(0)

    def compute() -> None:
        with torch.Stream(device="sim:0") as side:
            for index in range(200):
                a = shared[index % 8]
                a.record_stream(side)
                assert (torch.cat([a, a]) @ a)[0, 0].item() == 64

    def churn() -> None:
        for index in range(200):
            kept = [torch.empty(16, device="sim:1") for _ in range(5)]
            kept[0].sub_(1)
            cycle: list[object] = [kept]
            cycle.append(cycle)
            if index % 50 == 0:
                gc.collect()

    def ask() -> None:
        for _ in range(200):
            assert sim.mem(0).used >= 8 * 64 * 64 * 4
            assert sim.violations() == ()

    in_threads(compute, compute, churn, churn, ask)


def test_a_race_between_threads_is_a_race(sim: types.ModuleType) -> None:
    sim.config(race="record")
    slot, side = torch.zeros(64, device="sim:0"), torch.Stream(device="sim:0")
    torch.accelerator.synchronize(0)
    fetched: list[torch.Event] = []

    def fetch() -> None:
        with side:
            slot.copy_(torch.ones(64).pin_memory(), non_blocking=True)
            fetched.append(side.record_event())

    in_threads(fetch)
    slot + 1
    assert len(sim.take_violations()) == 1
    torch.accelerator.current_stream(0).wait_event(fetched[0])
    slot + 1
    assert sim.take_violations() == ()


@pytest.mark.parametrize("thread_clocks", [None, True, False], ids=["as the fixture sets it", "yes", "no"])
def test_a_wait_counts_for_the_thread_that_waited_or_for_all(sim: types.ModuleType, thread_clocks: bool | None) -> None:
    sim.config(race="record", thread_clocks=thread_clocks)
    slot, side = torch.zeros(64, device="sim:0"), torch.Stream(device="sim:0")
    side.wait_stream(torch.accelerator.current_stream(0))
    fetched: list[torch.Event] = []

    def fetch_and_wait() -> None:
        with side:
            slot.copy_(torch.ones(64).pin_memory(), non_blocking=True)
            fetched.append(side.record_event())
        fetched[0].synchronize()

    in_threads(fetch_and_wait)
    slot + 1
    assert bool(sim.take_violations()) == (thread_clocks is not False)
    fetched[0].synchronize()
    slot + 1
    assert not sim.take_violations()


def test_a_thread_knows_what_was_waited_for_before_it_came(sim: types.ModuleType) -> None:
    source = torch.ones(64, device="sim:0")
    torch.accelerator.synchronize(0)

    def read() -> None:
        with torch.Stream(device="sim:0") as side:
            source.record_stream(side)
            assert source.sum().item() == 64

    in_threads(read)


@pytest.mark.parametrize("parted_again", [False, True])
def test_a_thread_that_was_there_knows_what_all_knew_when_clocks_parted(
    sim: types.ModuleType, parted_again: bool
) -> None:
    sim.config(race="record")
    source = torch.ones(64, device="sim:0")
    here, go = threading.Event(), threading.Event()

    def read() -> None:
        torch.ones(1, device="sim:1")
        here.set()
        assert go.wait(PATIENCE_SECONDS)
        with torch.Stream(device="sim:0") as side:
            source.record_stream(side)
            source.sum()
            side.synchronize()

    def synchronize() -> None:
        assert here.wait(PATIENCE_SECONDS)
        torch.accelerator.synchronize(0)
        if parted_again:
            sim.config(thread_clocks=True)
        go.set()

    in_threads(read, synchronize)
    assert bool(sim.take_violations()) != parted_again


@pytest.mark.parametrize("carrier", ["event", "wait", "operator"])
def test_a_stream_carries_what_one_thread_knows_to_another(sim: types.ModuleType, carrier: str) -> None:
    source, side = torch.ones(64, device="sim:0"), torch.Stream(device="sim:0")
    nothing = torch.Event(device="sim:1")
    nothing.record(torch.accelerator.current_stream(1))
    here, go = threading.Event(), threading.Event()

    def wait_and_tell() -> None:
        assert here.wait(PATIENCE_SECONDS)
        torch.accelerator.synchronize(0)
        if carrier == "event":
            side.record_event()
        elif carrier == "wait":
            side.wait_event(nothing)
        else:
            with side:
                torch.ones(1, device="sim:0")
        go.set()

    def read() -> None:
        torch.ones(1, device="sim:1")
        here.set()
        assert go.wait(PATIENCE_SECONDS)
        with side:
            source.record_stream(side)
            assert source.sum().item() == 64

    in_threads(wait_and_tell, read)


def test_an_event_is_waited_for_across_threads(sim: types.ModuleType) -> None:
    target = torch.zeros(64, device="sim:1")
    recorded = threading.Event()
    events: list[torch.Event] = []
    torch.accelerator.synchronize(1)

    def produce() -> None:
        with torch.Stream(device="sim:1") as side:
            target.copy_(torch.full((64,), 5.0).pin_memory(), non_blocking=True)
            events.append(side.record_event())
        recorded.set()

    def consume() -> None:
        assert recorded.wait(PATIENCE_SECONDS)
        events[0].synchronize()
        assert target.sum().item() == 320

    in_threads(consume, produce)


@pytest.mark.parametrize("thread_count", [2, 4])
def test_accounts_add_up_whoever_allocates(sim: types.ModuleType, thread_count: int) -> None:
    held: list[torch.Tensor] = []
    before = sim.mem(3)

    def allocate() -> None:
        for index in range(200):
            t = torch.empty(512 * (1 + index % 3), dtype=torch.uint8, device="sim:3")
            if index % 2:
                held.append(t)

    in_threads(*(allocate,) * thread_count)
    after = sim.mem(3)
    assert after.used - before.used == sum(t.nbytes for t in held)
    assert after.allocs - before.allocs == 200 * thread_count
    assert after.frees - before.frees == 200 * thread_count - len(held)
