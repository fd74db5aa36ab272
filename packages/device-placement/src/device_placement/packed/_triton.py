"""Decoding by Triton.

The only module of the room that imports Triton, which comes with torch for NVIDIA, AMD and Intel GPUs and not
otherwise; it is imported when weights on such a device are first decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from device_placement.packed._format import Layout
from device_placement.packed._triton_kernel import RUN, decode_kernel


def decode_by_triton(buffer: Tensor, layout: Layout, out: Tensor) -> None:
    """Write the weights of a buffer into `out`.

    Args:
        buffer: what `encode` made.
        layout: the same.
        out: contiguous bf16 of the layout's shape, on the same device.
    """
    planes = layout.cut(buffer)
    count = layout.numel
    with _current(buffer.device):
        decode_kernel[(layout.blocks,)](
            planes.low.view(torch.uint16),
            planes.high,
            planes.starts,
            planes.rest,
            planes.escapes if layout.escapes else planes.rest,
            out.view(-1).view(torch.int16),
            layout.base,
            count,
            layout.escapes,
            RAGGED=count % RUN.value != 0,
        )


@contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Triton launches on the current device, whatever device its arguments are on."""
    if device.type == "cpu" or device.index == torch.accelerator.current_device_index():
        yield
        return
    before = torch.accelerator.current_device_index()
    torch.accelerator.set_device_index(device)
    try:
        yield
    finally:
        torch.accelerator.set_device_index(before)
