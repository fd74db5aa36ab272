"""Dequantisation of the plain block types: one scale, perhaps one minimum, and quants of 1 to 8 bits.

Layouts: ggml `ggml-common.h` (block_q4_0 and so on). `b` is (blocks, type_size) uint8, `w` receives (blocks,
block_size) weights. Products of a float16 scale and a small integer are exact in float32, so the order of the
operations is free; only adding an offset rounds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ._kernel import Kernel
from ._lanes import Lanes, scaled, signed, unsigned


def _scale(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (lanes.halves("scale", b[:, :2]),)


def _scale_and_offset(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return lanes.halves("scale", b[:, :2]), lanes.halves("offset", b[:, 2:4])


def _nibbles(lanes: Lanes, packed: Tensor) -> Tensor:
    """The low nibbles of each block's 16 bytes, then their high nibbles."""
    return lanes.fields("q", packed, 16, (0, 4), 15)


def _spread(lanes: Lanes, packed: Tensor, bits: int, value: int) -> Tensor:
    """Each field of so many bits, lowest first, as a byte of `value` times it."""
    return lanes.lookup("extra", lanes.table(_spread_table, bits, value), lanes.integers("index", packed))


@functools.cache
def _spread_table(bits: int, value: int) -> Tensor:
    fields = (torch.arange(256).unsqueeze(1) >> torch.arange(0, 8, bits)) & ((1 << bits) - 1)
    entry = {8: torch.int64, 4: torch.int32}[8 // bits]
    return (fields * value).to(torch.uint8).view(entry).view(-1)


def _q1_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, signed(_spread(lanes, b[:, 2:], 1, 2), bias=1), scale)


def _q2_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, signed(_spread(lanes, b[:, 2:], 2, 1), bias=1), scale)


def _q4_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, signed(_nibbles(lanes, b[:, 2:]), bias=8), scale)


def _q4_1(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, offset: Tensor) -> None:
    scaled(w, unsigned(_nibbles(lanes, b[:, 4:])), scale, offset)


def _q5_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    q = _nibbles(lanes, b[:, 6:]).bitwise_or_(_spread(lanes, b[:, 2:6], 1, 16))
    scaled(w, signed(q, bias=16), scale)


def _q5_1(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, offset: Tensor) -> None:
    q = _nibbles(lanes, b[:, 8:]).bitwise_or_(_spread(lanes, b[:, 4:8], 1, 16))
    scaled(w, unsigned(q), scale, offset)


def _q8_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, b[:, 2:].view(torch.int8), scale)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "Q1_0": Kernel(scales=_scale, weights=_q1_0),
        "Q2_0": Kernel(scales=_scale, weights=_q2_0),
        "Q4_0": Kernel(scales=_scale, weights=_q4_0),
        "Q4_1": Kernel(scales=_scale_and_offset, weights=_q4_1),
        "Q5_0": Kernel(scales=_scale, weights=_q5_0),
        "Q5_1": Kernel(scales=_scale_and_offset, weights=_q5_1),
        "Q8_0": Kernel(scales=_scale, weights=_q8_0),
    }
)
