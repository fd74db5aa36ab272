"""A machine whose links are as slow as you like: all memory is the CPU's, copies arrive when a link would deliver.

A copy's bytes are moved at once by a thread; the moment at which they count as arrived is worked out, not slept out:
a link delivers one copy after the other, each `latency + bytes / bandwidth` after the one before it or after it was
asked for. So the emulation is as exact as the clock that the forward waits on.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alloc_spec import human_size
from device_placement._errors import InvalidHardwareError, UnknownLinkError
from device_placement._hardware import Link
from device_placement.copying._clock import Clock, SystemClock
from device_placement.copying._ledger import Ledger
from device_placement.copying._worker import Job, Worker
from device_placement.machine._allocation import AllocationRefused, allocate_or_refuse


class EmulatedBackend:
    """Resolves every device name to the CPU and copies behind throttled links.

    Args:
        links: links from the donors to the compute device; those with the same `target` and `ingress` take turns.
        capacities: bytes that a device holds, by name; what is not named is as large as the machine.
        clock: what copies are timed by, the machine's clock by default.

    Raises:
        InvalidHardwareError: two links between the same devices.

    Example:
        >>> link = Link(source="emulated:1", target="emulated:0", gb_per_second=2.0)
        >>> backend = EmulatedBackend([link], capacities={"emulated:1": 1 << 20})
        >>> backend.allocate("emulated:1", 1 << 19).device, backend.free_bytes("emulated:0")
        (device(type='cpu'), None)
    """

    def __init__(
        self,
        links: Iterable[Link],
        *,
        capacities: Mapping[str, int] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._links: dict[tuple[str, str], Link] = {}
        for link in links:
            pair = (link.source, link.target)
            if pair in self._links:
                raise InvalidHardwareError(f"the link {link.source!r} -> {link.target!r} is described twice; keep one")
            self._links[pair] = link
        self._capacities = dict(capacities or {})
        self._ledgers = {name: Ledger() for name in self._capacities}
        self._clock: Clock = clock or SystemClock()
        self._ingresses: dict[tuple[str, str], _Ingress] = {}

    def device(self, name: str) -> torch.device:
        """The CPU, for every name."""
        return torch.device("cpu")

    def allocate(self, name: str, size_bytes: int) -> Tensor:
        """CPU memory, counted against the capacity of `name` for as long as the returned object lives."""
        free_bytes = self.free_bytes(name)
        if free_bytes is not None and size_bytes > free_bytes:
            free = human_size(free_bytes, rounding="down")
            raise AllocationRefused(f"{free} of {human_size(self._capacities[name])} are free")
        buffer = allocate_or_refuse(size_bytes, torch.device("cpu"))
        return self._ledgers[name].note(buffer) if name in self._ledgers else buffer

    def free_bytes(self, name: str) -> int | None:
        """What is left of the capacity; None for a device without one."""
        if name not in self._capacities:
            return None
        return self._capacities[name] - self._ledgers[name].used_bytes

    def open(self, compute: str, donors: Mapping[str, int]) -> EmulatedStreamer:
        """Copies over the links from `donors` to `compute`, by one thread.

        Raises:
            UnknownLinkError: a donor without a link.
        """
        lanes = {}
        for donor in donors:
            link = self._links.get((donor, compute))
            if link is None:
                raise UnknownLinkError(donor, compute, list(self._links))
            lanes[donor] = _Lane(link, self._ingresses.setdefault((compute, link.ingress), _Ingress()))
        return EmulatedStreamer(lanes, self._clock)


@dataclass(slots=True)
class _Ingress:
    """Moment from which the next copy may pass."""

    free: float = 0.0


@dataclass(slots=True)
class _Lane:
    link: Link
    ingress: _Ingress


class EmulatedStreamer:
    """One thread that moves the bytes, and the moments at which they count as moved."""

    shares_memory = False

    def __init__(self, lanes: Mapping[str, _Lane], clock: Clock) -> None:
        self._lanes = lanes
        self._clock = clock
        self._worker = Worker("emulated-link")
        self._gates: weakref.WeakSet[EmulatedGate] = weakref.WeakSet()

    def transfer(self, donor: str, source: Tensor, target: Tensor) -> EmulatedTransfer:
        """A copy over the link of `donor`."""
        return EmulatedTransfer(self._lanes[donor], source, target, self._clock)

    def gate(self, slot: Tensor) -> EmulatedGate:
        """A gate of this thread."""
        gate = EmulatedGate(self._worker, self._clock)
        self._gates.add(gate)
        return gate

    def synchronize(self) -> None:
        """Wait for every copy."""
        for gate in self._gates:
            gate.arrive()

    def restart(self) -> None:
        """A thread of this process; what the other one was to copy is forgotten."""
        self._worker = Worker("emulated-link")
        for gate in self._gates:
            gate.restart(self._worker)

    def close(self) -> None:
        """End the thread."""
        self._worker.close()


class EmulatedTransfer:
    """Bytes on a throttled link."""

    __slots__ = ("_arrival", "_clock", "_job", "_lane", "_seconds", "_source", "_target")

    def __init__(self, lane: _Lane, source: Tensor, target: Tensor, clock: Clock) -> None:
        self._lane = lane
        self._clock = clock
        self._source = source
        self._target = target
        self._seconds = lane.link.copy_seconds(source.numel())
        self._arrival = 0.0
        self._job: Job | None = None

    def start(self, worker: Worker) -> None:
        """Take the next turn on the link."""
        ingress = self._lane.ingress
        self._arrival = ingress.free = max(ingress.free, self._clock.now()) + self._seconds
        self._job = worker.give(self._copy)

    def finish(self) -> None:
        """Wait until the bytes are there and the link would have delivered them."""
        if self._job is not None:
            job, self._job = self._job, None
            job.wait()
            job.raise_error()
            self._clock.wait_until(self._arrival)

    def _copy(self) -> None:
        with torch.no_grad():
            self._target.copy_(self._source)


class EmulatedGate:
    """Forwards on the CPU are done when they return, so only copies have to be waited for."""

    __slots__ = ("__weakref__", "_clock", "_under_way", "_worker")

    def __init__(self, worker: Worker, clock: Clock) -> None:
        self._worker = worker
        self._clock = clock
        self._under_way: Sequence[EmulatedTransfer] = ()

    def fill(self, transfers: Sequence[EmulatedTransfer]) -> None:
        """Start copies; those of a filling that nobody read stay on the link, and the thread keeps the order."""
        for transfer in transfers:
            transfer.start(self._worker)
        self._under_way = transfers

    def arrive(self) -> float:
        """Wait for the copies."""
        if not self._under_way:
            return 0.0
        began = self._clock.now()
        for transfer in self._under_way:
            transfer.finish()
        self._under_way = ()
        return self._clock.now() - began

    def restart(self, worker: Worker) -> None:
        """Use another thread; nothing is under way there."""
        self._worker = worker
        self._under_way = ()

    def release(self) -> None:
        """The forward is over: nothing reads the slot any more."""
