"""What the engine asks of a kind of machine: memory by device name, and copies that run beside the forwards.

The engine decides what is copied when; a backend knows how. `SameDeviceBackend`, `EmulatedBackend` and
`AcceleratorBackend` are the three there are; whoever writes a fourth runs the conformance tests of this package on
it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Transfer: TypeAlias = Any
"""A copy that can be repeated, bytes of a donor's buffer to a place in a slot: what `Streamer.transfer` made."""


class Gate(Protocol):
    """Who may touch one slot when: it orders the copies into the slot against the forwards that read it.

    The engine calls `fill`, `arrive`, then `release`, over and over; a filled slot may be filled again without having
    been read, and read (`arrive`, `release`) any number of times once filled. Never two at a time.
    """

    def fill(self, transfers: Sequence[Transfer]) -> None:
        """Start copies into the slot as soon as everything that reads it now is done. Does not wait for them."""

    def arrive(self) -> float:
        """Make what the calling thread computes from now on wait for the copies.

        A copy that failed is raised once; whoever calls must then `fill` again before the slot is read.

        Returns:
            seconds that the host waited: 0 where the device waits by itself.
        """

    def release(self) -> None:
        """What the calling thread computed up to now was the last to read the slot before the next `fill`."""


class Streamer(Protocol):
    """The copying of one placed model.

    Attributes:
        shares_memory: True when donors keep their bytes where forwards can read them, so that nothing is ever copied
            and no slots are needed.
    """

    shares_memory: bool

    def transfer(self, donor: str, source: Tensor, target: Tensor) -> Transfer:
        """Prepare a copy from a flat buffer of `donor` to an equally large flat part of a slot."""

    def gate(self, slot: Tensor) -> Gate:
        """The gate of a fresh slot."""

    def synchronize(self) -> None:
        """Wait on the host until every copy and every forward that was started is done; raises what had failed."""

    def restart(self) -> None:
        """Go on in a process that was forked, where threads are gone and copies under way never arrive.

        Raises:
            HandleStateError: the device cannot be used there.
        """

    def close(self) -> None:
        """Give back threads and streams, after `synchronize`; nothing is copied any more."""


class Backend(Protocol):
    """A kind of machine. Holds no tensors, may serve several placed models."""

    def device(self, name: str) -> torch.device:
        """The torch device behind the name of a device in a plan.

        Raises:
            DeviceUnavailableError: there is no such device here.
        """

    def allocate(self, name: str, size_bytes: int) -> Tensor:
        """A flat uint8 tensor on the device of this name, its contents undefined.

        Raises:
            AllocationRefused: the device has no room.
        """

    def free_bytes(self, name: str) -> int | None:
        """Bytes that `allocate` could give at most, or None when only an attempt shows it."""

    def open(self, compute: str, donors: Mapping[str, int]) -> Streamer:
        """Make ready to stream to `compute`.

        Args:
            compute: name of the device that runs the forwards.
            donors: bytes of the largest share of a unit, by name of its donor.

        Raises:
            DeviceUnavailableError: streaming between these devices is not possible here.
        """
