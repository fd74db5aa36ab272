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
