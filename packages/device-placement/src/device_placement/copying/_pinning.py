"""Host memory that a device can read by itself: everything pinned, else a ring of pinned buffers, else neither.

Only pinned (page-locked) memory is copied at full speed and without the host. It is scarce: the operating system may
refuse it (WSL does so early), and what is pinned cannot be swapped out, so there is a budget. What does not get any
is copied through a few pinned buffers by a thread; where even those are refused, the driver stages the copy.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from alloc_spec import human_size
from device_placement._errors import DeviceUnavailableError
from device_placement.copying._ledger import Ledger
from device_placement.machine import _cuda
from device_placement.machine._allocation import AllocationRefused, allocate_or_refuse
from device_placement.machine._host_memory import host_memory

PIN_FRACTION = 0.5
"""Share of the machine's memory that is pinned at most, by default."""

_log = logging.getLogger(__name__)


class HostMemory:
    """Allocates host memory for the copies to one kind of accelerator, pinned while budget and driver allow.

    Args:
        budget_bytes: bytes to pin at most; None for half of the machine's memory.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        self._budget_bytes = default_budget_bytes() if budget_bytes is None else budget_bytes
        self._pinned = Ledger()
        self._refused = False

    @property
    def pinned_bytes(self) -> int:
        """Bytes pinned now."""
        return self._pinned.used_bytes

    def allocate(self, size_bytes: int, reader: torch.device) -> Tensor:
        """Host memory for copies to `reader`, pinned if possible.

        Raises:
            AllocationRefused: the host has no memory.
        """
        pinned = self.allocate_pinned(size_bytes, reader)
        return allocate_or_refuse(size_bytes, torch.device("cpu")) if pinned is None else pinned

    def allocate_pinned(self, size_bytes: int, reader: torch.device) -> Tensor | None:
        """Pinned memory, or None: over the budget, or refused (then nobody asks again)."""
        if self._refused or not size_bytes:
            return None
        if self._budget_bytes is not None and self.pinned_bytes + size_bytes > self._budget_bytes:
            return None
        try:
            buffer = _pinned_buffer(size_bytes, reader)
        except AllocationRefused as refusal:
            self._refused = True
            _log.warning(
                "pinning %s was refused after %s (%s); the rest is copied through a few pinned buffers",
                human_size(size_bytes),
                human_size(self.pinned_bytes),
                refusal.answer,
            )
            if reader.type == "cuda":
                _cuda.clear_error(reader)
            return None
        return self._pinned.note(buffer)

    def bounce_buffers(self, count: int, size_bytes: int, reader: torch.device) -> list[Tensor]:
        """Pinned buffers for bytes that could not be pinned: up to `count`, outside the budget; none if refused."""
        buffers: list[Tensor] = []
        try:
            while len(buffers) < count:
                buffers.append(_pinned_buffer(size_bytes, reader))
        except AllocationRefused as refusal:
            _log.warning("%d of %d bounce buffers could be pinned (%s)", len(buffers), count, refusal.answer)
            if reader.type == "cuda":
                _cuda.clear_error(reader)
        return buffers


def _pinned_buffer(size_bytes: int, reader: torch.device) -> Tensor:
    if reader.type == "cuda":
        return _cuda.registered_buffer(size_bytes)
    return allocate_or_refuse(size_bytes, torch.device("cpu"), pinned=True)


def default_budget_bytes() -> int | None:
    """Half of the memory that this process may use; None where nobody knows how much: then until the driver refuses."""
    try:
        _, total_bytes = host_memory()
    except DeviceUnavailableError as error:
        _log.info("no budget for pinned memory: %s", error)
        return None
    return int(total_bytes * PIN_FRACTION)
