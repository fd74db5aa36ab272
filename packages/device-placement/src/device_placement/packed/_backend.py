"""Which of the two decoders is used: eager torch, which runs anywhere, or Triton."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from device_placement.packed._codec import decode, output_for
from device_placement.packed._errors import PackedError
from device_placement.packed._format import Layout

_LOG = logging.getLogger(__name__)

Decoder: TypeAlias = Literal["auto", "eager", "triton"]
"""`auto` is Triton on CUDA devices where it is installed, and eager torch elsewhere."""


def decode_with(buffer: Tensor, layout: Layout, *, out: Tensor | None = None, decoder: Decoder = "auto") -> Tensor:
    """The weights of a buffer, decoded where it is.

    Args:
        buffer: what `encode` made.
        layout: the same.
        out: contiguous bf16 that receives the weights; fresh when not given.
        decoder: `auto`, `eager` or `triton`; both give the same bits.

    Raises:
        PackedError: the decoder is unknown or cannot work on this device, or `out` does not fit.
    """
    if not uses_triton(decoder, buffer.device):
        return decode(buffer, layout, out)
    from device_placement.packed._triton import decode_by_triton

    out = output_for(buffer, layout, out)
    if layout.numel:
        decode_by_triton(buffer, layout, out)
    return out


def uses_triton(decoder: Decoder, device: torch.device) -> bool:
    """Whether weights on this device are decoded by Triton.

    Raises:
        PackedError: the decoder is unknown, or Triton is demanded where it cannot work.
    """
    if decoder not in get_args(Decoder):
        raise PackedError(f"unknown decoder {decoder!r}; choose one of {', '.join(get_args(Decoder))}")
    if decoder == "auto":
        return device.type == "cuda" and _has_triton()
    if decoder == "triton" and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise PackedError("Triton cannot read memory of the CPU; use decoder 'auto' or 'eager'")
    return decoder == "triton"


@functools.cache
def _has_triton() -> bool:
    found = importlib.util.find_spec("triton") is not None
    if not found:
        _LOG.warning("Triton is not installed: packed weights on CUDA devices are decoded by eager torch, slower")
    return found
