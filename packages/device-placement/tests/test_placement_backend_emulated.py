"""The emulated link keeps time exactly: on a clock moved by hand, a run takes what `predict` says to the nanosecond."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_models import Machine, plan_for
from torch import Tensor, nn

from device_placement import (
    Device,
    EmulatedBackend,
    Hardware,
    InvalidHardwareError,
    Link,
    PlacementPlan,
    UnknownLinkError,
    place,
    predict,
)
from device_placement.copying._clock import SystemClock, VirtualClock
from device_placement.copying._worker import Worker
from device_placement.machine._allocation import AllocationRefused

COMPUTE = "emulated:0"


class Timed(nn.Module):
    """Computes for so many seconds of a clock."""

    def __init__(self, rows: int, seconds: float, clock: VirtualClock) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, 64))
        self.bias = nn.Parameter(torch.randn(rows))
        self.seconds = seconds
        self.clock = clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock.advance(self.seconds)
        return x + self.weight.sum() + self.bias.sum()


class TimedStack(nn.Module):
    """Such blocks in a row."""

    def __init__(self, blocks: list[Timed]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def machine_of(links: list[Link], clock: VirtualClock) -> tuple[Machine, Hardware]:
    """The same links for the engine and for the predictor."""
    donors = tuple(link.source for link in links)
    devices = tuple(Device(name=name, total_bytes=1 << 40, free_bytes=1 << 40) for name in (COMPUTE, *donors))
    machine = Machine(
        name="emulated",
        compute=COMPUTE,
        donors=donors,
        make_backend=lambda: EmulatedBackend(links, clock=clock),
        clock=clock,
    )
    return machine, Hardware(compute=COMPUTE, devices=devices, links=tuple(links))


def measured_seconds(model: nn.Module, plan: PlacementPlan, machine: Machine, passes: int = 24) -> float:
    """A steady pass of the engine on the machine's clock."""
    x = torch.zeros(1)
    with place(model, plan, backend=machine.make_backend()), torch.no_grad():
        for _ in range(passes):
            model(x)
        began = machine.clock.now()
        for _ in range(12):  # a pass may repeat only after two, three or four
            model(x)
        return (machine.clock.now() - began) / 12


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(1, 40), min_size=3, max_size=8),
    micros=st.lists(st.integers(1, 400), min_size=8, max_size=8),
    bandwidths=st.lists(st.sampled_from([0.05, 0.2, 1.0]), min_size=1, max_size=3),
    shared=st.booleans(),
    slots=st.integers(1, 3),
    resident=st.sets(st.integers(0, 7), max_size=3),
)
def test_the_engine_takes_what_is_predicted(
    rows: list[int],
    micros: list[int],
    bandwidths: list[float],
    shared: bool,
    slots: int,
    resident: set[int],
) -> None:
    clock = VirtualClock()
    blocks = [Timed(count, micros[index] * 1e-6, clock) for index, count in enumerate(rows)]
    links = [
        Link(
            source=f"emulated:{index + 1}",
            target=COMPUTE,
            gb_per_second=bandwidth,
            latency_seconds=5e-6,
            ingress="shared" if shared else f"own {index}",
        )
        for index, bandwidth in enumerate(bandwidths)
    ]
    machine, hardware = machine_of(links, clock)
    model = TimedStack(blocks).eval()
    streamed = [index for index in range(len(rows)) if index not in resident]

    def home(name: str) -> str | None:
        index = int(name.split(".")[1])
        if index in resident:
            return None
        return machine.donors[(index + ("bias" in name)) % len(machine.donors)]

    plan = plan_for(model, machine, home=home, slots=slots)
    predicted = predict(
        plan,
        hardware,
        unit_seconds={f"blocks.{index}": block.seconds for index, block in enumerate(blocks)},
    ).seconds
    measured = measured_seconds(model, plan, machine)
    if len(streamed) > slots:
        assert measured == pytest.approx(predicted, rel=1e-6)
    else:  # what fits in the slots stays there, and nothing is copied any more
        assert measured == pytest.approx(sum(block.seconds for block in blocks))


def test_links_that_share_an_ingress_take_turns() -> None:
    seconds = []
    for ingresses in (("one", "two"), ("one", "one")):
        clock = VirtualClock()
        links = [
            Link(source=name, target=COMPUTE, gb_per_second=0.001, latency_seconds=0, ingress=ingress)
            for name, ingress in zip(("emulated:1", "emulated:2"), ingresses, strict=True)
        ]
        machine, _ = machine_of(links, clock)
        backend = machine.make_backend()
        streamer = backend.open(COMPUTE, dict.fromkeys(machine.donors, 1000))
        slot = backend.allocate(COMPUTE, 2000)
        gate = streamer.gate(slot)
        gate.fill(
            [
                streamer.transfer(name, backend.allocate(name, 1000), slot[index * 1000 : (index + 1) * 1000])
                for index, name in enumerate(machine.donors)
            ]
        )
        gate.arrive()
        streamer.close()
        seconds.append(clock.now())
    assert seconds == [pytest.approx(0.001), pytest.approx(0.002)]


def test_two_models_on_one_backend_share_its_links() -> None:
    clock = VirtualClock()
    machine, _ = machine_of([Link(source="emulated:1", target=COMPUTE, gb_per_second=0.001, latency_seconds=0)], clock)
    backend = machine.make_backend()
    for expected in (0.001, 0.002):
        streamer = backend.open(COMPUTE, {"emulated:1": 1000})
        slot = backend.allocate(COMPUTE, 1000)
        gate = streamer.gate(slot)
        gate.fill([streamer.transfer("emulated:1", backend.allocate("emulated:1", 1000), slot)])
        assert clock.now() < expected
        gate.arrive()
        assert clock.now() == pytest.approx(expected)
        streamer.close()


def test_a_copy_that_arrived_early_costs_no_wait() -> None:
    clock = VirtualClock()
    machine, _ = machine_of([Link(source="emulated:1", target=COMPUTE, gb_per_second=0.001, latency_seconds=0)], clock)
    backend = machine.make_backend()
    streamer = backend.open(COMPUTE, {"emulated:1": 1000})
    slot = backend.allocate(COMPUTE, 1000)
    gate = streamer.gate(slot)
    gate.fill([streamer.transfer("emulated:1", backend.allocate("emulated:1", 1000), slot)])
    clock.advance(0.0004)
    assert gate.arrive() == pytest.approx(0.0006)
    gate.fill([streamer.transfer("emulated:1", backend.allocate("emulated:1", 1000), slot)])
    clock.advance(1)
    assert gate.arrive() == 0
    streamer.close()


def test_a_capacity_is_used_up_and_given_back() -> None:
    backend = EmulatedBackend([], capacities={"emulated:1": 1000})
    first = backend.allocate("emulated:1", 600)
    with pytest.raises(AllocationRefused, match="400 bytes of 1000 bytes are free"):
        backend.allocate("emulated:1", 401)
    assert backend.free_bytes("emulated:1") == 400
    del first
    assert backend.free_bytes("emulated:1") == 1000
    assert backend.free_bytes("emulated:2") is None


def test_a_link_is_described_once_and_named_when_missing() -> None:
    link = Link(source="emulated:1", target=COMPUTE, gb_per_second=1)
    with pytest.raises(InvalidHardwareError, match="described twice"):
        EmulatedBackend([link, link])
    with pytest.raises(UnknownLinkError, match="'emulated:2' to 'emulated:0'"):
        EmulatedBackend([link]).open(COMPUTE, {"emulated:2": 1})


def test_the_machines_clock_waits_until_the_moment_and_not_before() -> None:
    clock = SystemClock()
    for seconds in (0.0, 0.0002, 0.003):
        moment = clock.now() + seconds
        clock.wait_until(moment)
        assert clock.now() >= moment
    began = time.perf_counter()
    clock.wait_until(clock.now() - 10)
    assert time.perf_counter() - began < 5


def test_a_worker_does_jobs_in_order_and_passes_on_what_they_raise() -> None:
    done: list[int] = []
    worker = Worker("test")
    jobs = [worker.give(lambda index=index: done.append(index)) for index in range(5)]  # type: ignore[misc]

    def fail() -> None:
        raise LookupError("as asked")

    failing = worker.give(fail)
    last = worker.give(lambda: done.append(9))
    for job in jobs:
        job.wait()
        job.raise_error()
    failing.wait()
    with pytest.raises(LookupError, match="as asked"):
        failing.raise_error()
    last.wait()
    assert done == [0, 1, 2, 3, 4, 9]
    worker.close()


def test_a_forgotten_worker_ends_its_thread() -> None:
    worker = Worker("forgotten worker")
    worker.give(lambda: None).wait()
    thread = next(thread for thread in threading.enumerate() if thread.name == "forgotten worker")
    del worker
    thread.join(timeout=30)
    assert not thread.is_alive()
