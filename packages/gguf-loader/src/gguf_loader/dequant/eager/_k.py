"""Dequantisation of the K types: super-blocks of 256 weights, whose groups of 16 or 32 have scales of their own.

Layouts: ggml `ggml-common.h` (block_q2_K and so on). `b` is (blocks, type_size) uint8, `w` receives (blocks, 256)
weights. Scale tables hold one float32 a group; the product of a group's scale and a quant is exact in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ._kernel import Kernel
from ._lanes import LOW_BITS, LOW_NIBBLES, LOW_PAIRS, Lanes, scaled, signed, unsigned


def _q2_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    packed = lanes.gather_lanes("x", b[:, :16])
    low, high = lanes.bits("plane0", packed, 0, LOW_NIBBLES), lanes.bits("plane1", packed, 4, LOW_NIBBLES)
    scales = lanes.floats("scale", unsigned(low)).view(-1, 16)
    offsets = lanes.floats("offset", unsigned(high)).view(-1, 16)
    return scales.mul_(lanes.halves("d", b[:, 80:82])), offsets.mul_(lanes.halves("d", b[:, 82:84]).neg_())


def q2_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, offset: Tensor) -> None:
    """Pairs of bits, group by group."""
    scaled(w, unsigned(lanes.fields("q", b[:, 16:80], 32, (0, 2, 4, 6), 3)), scale, offset)


def _q3_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # Bytes 0-7 hold the low nibbles of scales 0-7 and 8-15; the 2-bit fields of bytes 8-11 the high bits of four each.
    low, high = lanes.gather("x", b[:, 96:104]), lanes.gather("y", b[:, 104:108])
    six = lanes.take("q", (b.shape[0], 16))
    torch.bitwise_and(low, 15, out=six[:, :8])
    torch.bitwise_right_shift(low, 4, out=six[:, 8:])
    for i in range(4):
        six[:, 4 * i : 4 * i + 4] |= ((high >> (2 * i)) & 3) << 4
    scales = lanes.floats("scale", six.sub_(32).view(torch.int8))
    return (scales.mul_(lanes.halves("d", b[:, 108:110])),)


def _pair_planes(lanes: Lanes, packed: Tensor) -> list[Tensor]:
    """The four 2-bit fields of each byte, lowest first, as planes."""
    x = lanes.gather_lanes("x", packed)
    return [lanes.bits(f"plane{i}", x, 2 * i, LOW_PAIRS) for i in range(4)]


def _q3_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # Plane i of half h takes its third bit from bit 4h + i of the mask bytes.
    mask = lanes.gather_lanes("y", b[:, :32])
    third = lanes.interleave("extra", (mask, lanes.bits("bit", mask, 4)), 32)
    planes = _pair_planes(lanes, b[:, 32:96])
    for i, plane in enumerate(planes):
        plane.bitwise_or_(lanes.bits("bit", third, i - 2, 4 * LOW_BITS))
    scaled(w, signed(lanes.interleave("q", planes, 32), bias=4), scale)


def _q4_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # Three int32 of four bytes: 6 bits of scales 0-3, 6 bits of minima 0-3, low nibbles of scales and minima 4-7;
    # the top two bits of the first two hold the high bits of scales and minima 4-7.
    first, second, third = b[:, 4:16].view(torch.int32).unbind(1)
    six = lanes.take("q", (2, b.shape[0], 2), torch.int32)
    torch.bitwise_and(first, 0x3F3F3F3F, out=six[0, :, 0])
    torch.bitwise_and(second, 0x3F3F3F3F, out=six[1, :, 0])
    six[0, :, 1] = (third & 0x0F0F0F0F) | ((first >> 2) & 0x30303030)
    six[1, :, 1] = ((third >> 4) & 0x0F0F0F0F) | ((second >> 2) & 0x30303030)
    scales = lanes.floats("scale", six[0].view(torch.uint8))
    offsets = lanes.floats("offset", six[1].view(torch.uint8))
    return scales.mul_(lanes.halves("d", b[:, :2])), offsets.mul_(lanes.halves("d", b[:, 2:4]).neg_())


def q4_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, offset: Tensor) -> None:
    """Nibbles, group by group."""
    scaled(w, unsigned(lanes.fields("q", b[:, 16:], 32, (0, 4), 15)), scale, offset)


def _q5_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, offset: Tensor) -> None:
    # Bits 2j and 2j + 1 of the 32 bytes before the nibbles are the fifth bits of run j, low and high nibbles.
    y = lanes.gather_lanes("y", b[:, 16:48])
    fifth = lanes.interleave("extra", (y, *(lanes.bits(f"plane{j}", y, 2 * j) for j in (1, 2, 3))), 32)
    x = lanes.gather_lanes("x", b[:, 48:])
    low, high = lanes.bits("plane0", x, 0, LOW_NIBBLES), lanes.bits("plane1", x, 4, LOW_NIBBLES)
    low.bitwise_or_(lanes.bits("bit", fifth, -4, 16 * LOW_BITS))
    high.bitwise_or_(lanes.bits("bit", fifth, -3, 16 * LOW_BITS))
    scaled(w, unsigned(lanes.interleave("q", (low, high), 32)), scale, offset)


def _q6_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    scales = lanes.floats("scale", b[:, 192:208].view(torch.int8))
    return (scales.mul_(lanes.halves("d", b[:, 208:210])),)


def _q6_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # Each half: 64 bytes whose nibbles are runs 0-1 (low) and 2-3 (high), 32 bytes with two more bits for every run.
    y = lanes.gather_lanes("y", b[:, 128:192])
    pairs = lanes.interleave("extra", (y, lanes.bits("bit", y, 2)), 32)
    x = lanes.gather_lanes("x", b[:, :128])
    low, high = lanes.bits("plane0", x, 0, LOW_NIBBLES), lanes.bits("plane1", x, 4, LOW_NIBBLES)
    low.bitwise_or_(lanes.bits("bit", pairs, -4, 16 * LOW_PAIRS))
    high.bitwise_or_(lanes.bits("bit", pairs, 0, 16 * LOW_PAIRS))
    scaled(w, signed(lanes.interleave("q", (low, high), 64), bias=32), scale)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "Q2_K": Kernel(scales=_q2_k_scales, weights=q2_k),
        "Q3_K": Kernel(scales=_q3_k_scales, weights=_q3_k),
        "Q4_K": Kernel(scales=_q4_k_scales, weights=q4_k),
        "Q5_K": Kernel(scales=_q4_k_scales, weights=_q5_k),
        "Q6_K": Kernel(scales=_q6_k_scales, weights=_q6_k),
    }
)
