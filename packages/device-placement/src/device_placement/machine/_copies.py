"""Whether bytes survive the way between two accelerators.

Some machines (an IOMMU or PCIe access control in the way) report a successful peer copy and deliver other bytes, so a
pattern is sent and compared before any weight is trusted to a link.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PATTERN_BYTES = (1 << 16) + 3
"""Enough for many packets, and not a multiple of any."""

Route = Callable[[Tensor, Tensor], None]
"""Copies a tensor on the source into one on the target."""


def direct(source: Tensor, target: Tensor) -> None:
    """From device to device."""
    target.copy_(source)


def through_host(source: Tensor, target: Tensor) -> None:
    """Two hops."""
    target.copy_(source.cpu())


def survives(source: torch.device, target: torch.device, route: Route = direct) -> bool:
    """Send a pattern from `source` to `target` and compare what arrived. Waits for both; allocates 64 KiB on each."""
    pattern = torch.arange(PATTERN_BYTES).remainder(251).to(torch.uint8)
    sent = pattern.to(source)
    arrived = torch.zeros(PATTERN_BYTES, dtype=torch.uint8, device=target)
    route(sent, arrived)
    return torch.equal(arrived.cpu(), pattern)


def copy_on(stream: torch.Stream, source: Tensor, target: Tensor) -> None:
    """Copy without waiting, on `stream`; the calling thread's current streams and device do not change.

    Bytes that come from another accelerator leave it on the stream that is current there, and so in order with what
    was written there before.
    """
    accelerator = torch.accelerator
    device_index = accelerator.current_device_index()
    previous = accelerator.current_stream(stream.device_index)
    accelerator.set_stream(stream)
    try:
        target.copy_(source, non_blocking=True)
    finally:
        accelerator.set_stream(previous)
        if device_index != previous.device_index:
            accelerator.set_device_index(device_index)
