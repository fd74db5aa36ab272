"""Real accelerators (CUDA, XPU, whatever torch.accelerator speaks for): memory, pinning, streams, peer copies."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from alloc_spec import human_size
from device_placement._errors import DeviceUnavailableError, HandleStateError, PeerCopyError
from device_placement.copying._pinning import HostMemory
from device_placement.copying._streams import (
    BouncedTransfer,
    Bouncer,
    DirectTransfer,
    Hop,
    StreamGate,
    StreamTransfer,
    TwoHopTransfer,
)
from device_placement.machine import _copies
from device_placement.machine._allocation import AllocationRefused, allocate_or_refuse

BOUNCE_BUFFERS = 4
BOUNCE_BYTES = 32 << 20

_log = logging.getLogger(__name__)


class AcceleratorBackend:
    """Streams to an accelerator from the host and from other accelerators of its kind.

    One stream a link, events only: in the steady state the host never waits for a device, except where memory could
    be pinned neither wholly nor partly.

    Args:
        pin_budget_bytes: host memory to pin at most; None for half of the machine's.
        bounce_bytes: size of each of the buffers through which unpinned memory is copied; 0 to leave it to the
            driver.
    """

    def __init__(self, *, pin_budget_bytes: int | None = None, bounce_bytes: int = BOUNCE_BYTES) -> None:
        self._host = HostMemory(pin_budget_bytes)
        self._bounce_bytes = bounce_bytes
        self._reachable: dict[tuple[torch.device, torch.device], bool] = {}

    @property
    def pinned_bytes(self) -> int:
        """Host memory that is pinned for weights now."""
        return self._host.pinned_bytes

    def device(self, name: str) -> torch.device:
        """The host, or an accelerator that is there.

        Raises:
            DeviceUnavailableError: torch does not know the name, or has no such accelerator.
        """
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise DeviceUnavailableError(
                name, "torch knows no device of this name", "name one as torch does, for example 'cuda:0' or 'cpu'"
            ) from error
        if device.type == "cpu":
            return torch.device("cpu")
        accelerator = _accelerator()
        if accelerator.type != device.type:
            raise DeviceUnavailableError(
                name, f"the accelerators of this machine are of the type {accelerator.type!r}", "name one of these"
            )
        count = torch.accelerator.device_count()
        index = torch.accelerator.current_device_index() if device.index is None else device.index
        if index >= count:
            raise DeviceUnavailableError(
                name, f"there are {count}, numbered from 0", "name one of these, or check which are visible"
            )
        return torch.device(device.type, index)

    def allocate(self, name: str, size_bytes: int) -> Tensor:
        """Memory of an accelerator, or of the host, there pinned if possible.

        Raises:
            AllocationRefused: the device has no room.
        """
        device = self.device(name)
        if device.type == "cpu":
            return self._host.allocate(size_bytes, _accelerator())
        return allocate_or_refuse(size_bytes, device)

    def free_bytes(self, name: str) -> int | None:
        """Free memory of an accelerator, what torch keeps in reserve included; None for the host."""
        device = self.device(name)
        module = torch.get_device_module(device)
        if not hasattr(module, "mem_get_info"):
            return None
        free_bytes, _ = module.mem_get_info(device)
        return int(free_bytes + module.memory_reserved(device) - module.memory_allocated(device))

    def open(self, compute: str, donors: Mapping[str, int]) -> AcceleratorStreamer:
        """One stream for each donor; accelerators among them are checked by a pattern the first time.

        Raises:
            DeviceUnavailableError: `compute` is not an accelerator, or one has no room for the pattern.
            PeerCopyError: a donor's bytes arrive changed whichever way they take.
        """
        target = self.device(compute)
        if target.type == "cpu":
            raise DeviceUnavailableError(
                compute, "forwards run on it without streams", "use SameDeviceBackend or EmulatedBackend for the CPU"
            )
        unreachable = {}
        for donor, share_bytes in donors.items():
            source = self.device(donor)
            if source.type != "cpu" and not self._reaches(source, target):
                unreachable[donor] = share_bytes
        return AcceleratorStreamer(target, list(donors), unreachable, self._host, self._bounce_bytes)

    def _reaches(self, source: torch.device, target: torch.device) -> bool:
        """Whether copies go directly; False: through the host."""
        if (source, target) not in self._reachable:
            try:
                self._reachable[source, target] = _tested(source, target)
            except torch.OutOfMemoryError as error:
                raise DeviceUnavailableError(
                    str(source),
                    f"there is no room for {human_size(_copies.PATTERN_BYTES)} to test its link to {target}",
                    "free memory on both, or take it off the donors",
                ) from error
        return self._reachable[source, target]


def _tested(source: torch.device, target: torch.device) -> bool:
    """Whether bytes survive the direct way; False when only the way through the host is sound."""
    if _copies.survives(source, target):
        return True
    if not _copies.survives(source, target, _copies.through_host):
        raise PeerCopyError(str(source), str(target))
    _log.warning("copies from %s to %s deliver wrong bytes; they go through the host", source, target)
    return False


def _accelerator() -> torch.device:
    # Without the check torch answers "cuda" on a machine that has the libraries and no device.
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        raise DeviceUnavailableError(
            "accelerator", "this process sees none", "check the driver, or plan for 'cpu' as the compute device"
        )
    return accelerator


class AcceleratorStreamer:
    """Streams and buffers of one placed model."""

    shares_memory = False

    def __init__(
        self,
        device: torch.device,
        donors: list[str],
        unreachable: Mapping[str, int],
        host: HostMemory,
        bounce_bytes: int,
    ) -> None:
        self._device = device
        self._streams = {donor: torch.Stream(device=device) for donor in donors}
        self._unreachable = dict(unreachable)
        self._host = host
        self._bounce_bytes = bounce_bytes
        self._hops: weakref.WeakValueDictionary[tuple[str, int], Hop] = weakref.WeakValueDictionary()
        self._bouncer: Bouncer | None = None
        # Transfers hold their hops and slots their gates: a ring that is given back takes both along.
        self._gates: weakref.WeakSet[StreamGate] = weakref.WeakSet()

    def transfer(self, donor: str, source: Tensor, target: Tensor) -> StreamTransfer:
        """A copy on the stream of `donor`, in the best way there is for its memory."""
        stream = self._streams[donor]
        # A model may be forgotten with copies under way: its slots must not be given to others before these end.
        target.record_stream(stream)
        if source.device.type != "cpu":
            target.record_stream(torch.accelerator.current_stream(source.device))
        if donor in self._unreachable:
            return TwoHopTransfer(stream, source, target, self._hop(donor, target))
        if source.device.type == "cpu" and not source.is_pinned() and self._bounce_bytes:
            bouncer = self._bouncing()
            if bouncer is not None:
                return BouncedTransfer(stream, source, target, bouncer)
        return DirectTransfer(stream, source, target)

    def _hop(self, donor: str, target: Tensor) -> Hop:
        """The buffer between `donor` and the slot that `target` is a part of."""
        key = (donor, target.untyped_storage().data_ptr())
        hop = self._hops.get(key)
        if hop is None:
            size_bytes = self._unreachable[donor]
            try:
                hop = self._hops[key] = Hop(self._host.allocate(size_bytes, self._device))
            except AllocationRefused as refusal:
                raise DeviceUnavailableError(
                    donor,
                    f"its bytes go through the host, which has no {human_size(size_bytes)} free ({refusal.answer})",
                    "free host memory, or take it off the donors",
                ) from refusal
        return hop

    def _bouncing(self) -> Bouncer | None:
        if self._bouncer is None:
            buffers = self._host.bounce_buffers(BOUNCE_BUFFERS, self._bounce_bytes, self._device)
            if not buffers:
                self._bounce_bytes = 0
                return None
            self._bouncer = Bouncer(buffers, self._device)
        return self._bouncer

    def gate(self, slot: Tensor) -> StreamGate:
        """A gate that opens when the memory of `slot` is no longer used for anything else."""
        gate = StreamGate(slot.zero_())
        self._gates.add(gate)
        return gate

    def synchronize(self) -> None:
        """Wait for all copies, also those that a thread has still to issue, and for all forwards."""
        for gate in self._gates:
            gate.arrive()
        torch.accelerator.synchronize(self._device)

    def restart(self) -> None:
        """Refused: a process that was forked cannot use the accelerators of its parent.

        Raises:
            HandleStateError: always.
        """
        raise HandleStateError(
            f"a placed model on {self._device} came into this process by fork, which cannot use the device; start the "
            "process by spawn and place the model there"
        )

    def close(self) -> None:
        """End the thread and drop its buffers."""
        if self._bouncer is not None:
            self._bouncer.worker.close()
            self._bouncer = None
