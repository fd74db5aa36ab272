"""Allocate memory of a device, or say that it has no room, in one way for all devices."""

from __future__ import annotations

import torch
from torch import Tensor


class AllocationRefused(Exception):
    """A device has no room. Not an error yet: the next device is asked, users see `DevicesFullError`.

    Attributes:
        answer: what the device said, in one line.
    """

    def __init__(self, answer: str) -> None:
        self.answer = answer.strip().splitlines()[0] if answer.strip() else "out of memory"
        super().__init__(self.answer)


def allocate_or_refuse(size_bytes: int, device: torch.device, *, pinned: bool = False) -> Tensor:
    """`torch.empty` whose refusals are `AllocationRefused`, whatever the device calls them.

    Raises:
        AllocationRefused: there is no room.
    """
    try:
        return torch.empty(size_bytes, dtype=torch.uint8, device=device, pin_memory=pinned)
    except torch.OutOfMemoryError as error:
        raise AllocationRefused(str(error)) from error
    except RuntimeError as error:
        # The CPU allocator and a refused pin have no class of their own.
        if device.type != "cpu":
            raise
        raise AllocationRefused(str(error)) from error
