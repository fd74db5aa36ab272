"""Dequantisation of the types whose 4-bit codes stand for one of sixteen uneven values.

Layouts: ggml `ggml-common.h` (block_iq4_nl, block_iq4_xs, block_mxfp4, block_nvfp4). Two bytes at a time index a table
that holds both low codes' values, and one with both high codes'.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ._kernel import Kernel
from ._lanes import Lanes, scaled, signed

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of IQ4_NL and IQ4_XS (ggml kvalues_iq4nl)."""

E2M1_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""The 4-bit floats of MXFP4 and NVFP4 times two (OCP Microscaling Formats 1.0, section 5.3.3)."""


@functools.cache
def pair_table(values: tuple[int, ...]) -> Tensor:
    """Entries for the codes in two bytes: the values of both low codes, then those of both high codes; int32."""
    book = torch.tensor(values, dtype=torch.int8)
    pair = torch.arange(65536)
    first, second = pair & 255, pair >> 8
    entries = torch.stack([book[first & 15], book[second & 15], book[first >> 4], book[second >> 4]], 1)
    return entries.view(torch.int32).view(-1)


def _codes(lanes: Lanes, packed: Tensor, values: tuple[int, ...], run: int) -> Tensor:
    """The values of the low codes of `run` bytes, then of their high codes, and so on; int8."""
    x = lanes.gather("x", packed).view(-1)
    index = lanes.integers("index", x.view(torch.int16)).bitwise_and_(0xFFFF)
    both = lanes.take("extra", (index.numel(),), torch.int32)
    torch.index_select(lanes.table(pair_table, values), 0, index, out=both)
    # Narrowing keeps the low half of an entry, and is far cheaper than moving halves apart.
    low = lanes.take("plane0", (index.numel(),), torch.int16).copy_(both)
    high = lanes.take("plane1", (index.numel(),), torch.int16).copy_(both.bitwise_right_shift_(16))
    planes = low.view(torch.int64), high.view(torch.int64)
    return signed(lanes.interleave("q", planes, run))


def _iq4_nl_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (lanes.halves("scale", b[:, :2]),)


def _iq4_nl(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, _codes(lanes, b[:, 2:], IQ4_VALUES, 16), scale)


def _iq4_xs_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # Eight 6-bit scales: two high bits each in an int16, low nibbles in four bytes.
    shifts = torch.arange(0, 16, 2, dtype=torch.int32, device=lanes.device)
    high = (lanes.integers("index", b[:, 2:4].view(torch.int16)) >> shifts) & 3
    nibble_shifts = torch.tensor([0, 4], dtype=torch.int32, device=lanes.device)
    low = (lanes.integers("q", b[:, 4:8]).unsqueeze(-1) >> nibble_shifts) & 15
    scales = lanes.floats("scale", (high << 4).add_(low.view(-1, 8)).sub_(32))
    return (scales.mul_(lanes.halves("d", b[:, :2])),)


def _iq4_xs(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, _codes(lanes, b[:, 8:], IQ4_VALUES, 16), scale)


def _scale_bytes(lanes: Lanes, packed: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    index = lanes.integers("index", packed)
    out = lanes.take("scale", (index.numel(),), torch.float32)
    return (torch.index_select(table, 0, index.view(-1), out=out).view(index.shape),)


@functools.cache
def _e8m0_halved() -> Tensor:
    """2 ** (e - 128): the block exponent of MXFP4, halved because the values are doubled."""
    return torch.ldexp(torch.ones(256, dtype=torch.float64), torch.arange(256) - 128).float()


@functools.cache
def _ue4m3_halved() -> Tensor:
    """Unsigned 4-bit exponent, 3-bit mantissa, halved; the top bit is ignored and 0x7F is 0, as ggml has it."""
    code = torch.arange(256)
    exponent, mantissa = (code >> 3) & 15, (code & 7).double()
    normal = torch.ldexp(1 + mantissa / 8, exponent - 7)
    value = torch.where(exponent == 0, mantissa / 512, normal) / 2
    return torch.where(code == 0x7F, 0.0, value).float()


def _mxfp4_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return _scale_bytes(lanes, b[:, :1], lanes.table(_e8m0_halved))


def _mxfp4(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, _codes(lanes, b[:, 1:], E2M1_DOUBLED, 16), scale)


def _nvfp4_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return _scale_bytes(lanes, b[:, :4], lanes.table(_ue4m3_halved))


def _nvfp4(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, _codes(lanes, b[:, 4:], E2M1_DOUBLED, 8), scale)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "IQ4_NL": Kernel(scales=_iq4_nl_scales, weights=_iq4_nl),
        "IQ4_XS": Kernel(scales=_iq4_xs_scales, weights=_iq4_xs),
        "MXFP4": Kernel(scales=_mxfp4_scales, weights=_mxfp4),
        "NVFP4": Kernel(scales=_nvfp4_scales, weights=_nvfp4),
    }
)
