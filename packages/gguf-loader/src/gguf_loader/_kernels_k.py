"""Dequantisation of the K types: super-blocks of 256 weights, whose groups of 16 or 32 have scales of their own.

Layouts: ggml `ggml-common.h` (block_q2_K and so on). `b` is (blocks, type_size) uint8, `w` receives (blocks, 256)
float32. Scale tables hold one float32 a group; the product of a group's scale and a quant is exact in float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ._kernel import Kernel
from ._lanes import LOW_BITS, LOW_NIBBLES, LOW_PAIRS, Lanes, or_, scaled


def _q2_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    packed = lanes.gather("packed_scales", b[:, :16])
    scales = lanes.floats("scale", lanes.bits("fields", packed, 0, LOW_NIBBLES))
    minima = lanes.floats("minimum", lanes.bits("fields", packed, 4, LOW_NIBBLES))
    d = lanes.halves("d", b[:, 80:84])
    return scales.mul_(d[:, :1]), minima.mul_(d[:, 1:])


def _pair_planes(lanes: Lanes, packed: Tensor) -> list[Tensor]:
    """The four 2-bit fields of each byte, lowest first, as planes."""
    x = lanes.gather("x", packed)
    return [lanes.bits(f"plane{i}", x, 2 * i, LOW_PAIRS) for i in range(4)]


def _q2_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, minimum: Tensor) -> None:
    scaled(w, lanes.interleave("q", _pair_planes(lanes, b[:, 16:80]), 32), scale)
    w.view(-1, 16).sub_(minimum.view(-1, 1))


def _q3_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # Bytes 0-7 hold the low nibbles of scales 0-7 and 8-15; the 2-bit fields of bytes 8-11 the high bits of four each.
    low, high = lanes.gather("packed_low", b[:, 96:104]), lanes.gather("packed_high", b[:, 104:108])
    six = lanes.take("six_bits", (b.shape[0], 16))
    torch.bitwise_and(low, 15, out=six[:, :8])
    torch.bitwise_right_shift(low, 4, out=six[:, 8:])
    for i in range(4):
        six[:, 4 * i : 4 * i + 4] |= ((high >> (2 * i)) & 3) << 4
    scales = lanes.floats("scale", six.sub_(32).view(torch.int8))
    return (scales.mul_(lanes.halves("d", b[:, 108:110])),)


def _q3_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # Plane i of half h takes its third bit from bit 4h + i of the mask bytes.
    mask = lanes.gather("mask", b[:, :32])
    halves = lanes.bits("first", mask, 0, LOW_NIBBLES), lanes.bits("second", mask, 4, LOW_NIBBLES)
    third = lanes.interleave("third", halves, 32)
    planes = _pair_planes(lanes, b[:, 32:96])
    for i, plane in enumerate(planes):
        or_(plane, lanes.bits("bit", third, i - 2, 4 * LOW_BITS))
    scaled(w, lanes.interleave("q", planes, 32).sub_(4).view(torch.int8), scale)


def _q4_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # Three int32 of four bytes: 6 bits of scales 0-3, 6 bits of minima 0-3, low nibbles of scales and minima 4-7;
    # the top two bits of the first two hold the high bits of scales and minima 4-7.
    first, second, third = b[:, 4:16].view(torch.int32).unbind(1)
    six = lanes.take("six_bits", (2, b.shape[0], 2), torch.int32)
    torch.bitwise_and(first, 0x3F3F3F3F, out=six[0, :, 0])
    torch.bitwise_and(second, 0x3F3F3F3F, out=six[1, :, 0])
    six[0, :, 1] = (third & 0x0F0F0F0F) | ((first >> 2) & 0x30303030)
    six[1, :, 1] = ((third >> 4) & 0x0F0F0F0F) | ((second >> 2) & 0x30303030)
    d = lanes.halves("d", b[:, :4])
    scales, minima = lanes.floats("scale_and_minimum", six.view(torch.uint8))
    return scales.mul_(d[:, :1]), minima.mul_(d[:, 1:])


def _q4_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, minimum: Tensor) -> None:
    x = lanes.gather("x", b[:, 16:])
    planes = lanes.bits("low", x, 0, LOW_NIBBLES), lanes.bits("high", x, 4, LOW_NIBBLES)
    scaled(w, lanes.interleave("q", planes, 32), scale)
    w.view(-1, 32).sub_(minimum.view(-1, 1))


def _q5_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, minimum: Tensor) -> None:
    # Bits 2j and 2j + 1 of the 32 bytes before the nibbles are the fifth bits of run j, low and high nibbles.
    high_bits = lanes.interleave("fifth", _pair_planes(lanes, b[:, 16:48]), 32)
    x = lanes.gather("x", b[:, 48:])
    low, high = lanes.bits("low", x, 0, LOW_NIBBLES), lanes.bits("high", x, 4, LOW_NIBBLES)
    or_(low, lanes.bits("bit", high_bits, -4, 16 * LOW_BITS))
    or_(high, lanes.bits("bit", high_bits, -3, 16 * LOW_BITS))
    scaled(w, lanes.interleave("q", (low, high), 32), scale)
    w.view(-1, 32).sub_(minimum.view(-1, 1))


def _q6_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    scales = lanes.floats("scale", b[:, 192:208].view(torch.int8))
    return (scales.mul_(lanes.halves("d", b[:, 208:210])),)


def _q6_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # Each half: 64 bytes whose nibbles are runs 0-1 (low) and 2-3 (high), 32 bytes with two more bits for every run.
    n = b.shape[0]
    x, y = lanes.gather("x", b[:, :128]), lanes.gather("y", b[:, 128:192])
    low, high = lanes.bits("low", x, 0, LOW_NIBBLES), lanes.bits("high", x, 4, LOW_NIBBLES)
    for plane, shifts in ((low, (-4, -2)), (high, (0, 2))):
        pairs = [lanes.bits(f"pair{i}", y, shift, 16 * LOW_PAIRS) for i, shift in enumerate(shifts)]
        or_(plane, lanes.interleave("pairs", pairs, 32))
    q = lanes.interleave("q", (low, high), 64)
    scaled(w, q.view(n, 256).sub_(32).view(torch.int8), scale)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "Q2_K": Kernel(scales=_q2_k_scales, weights=_q2_k),
        "Q3_K": Kernel(scales=_q3_k_scales, weights=_q3_k),
        "Q4_K": Kernel(scales=_q4_k_scales, weights=_q4_k),
        "Q5_K": Kernel(scales=_q4_k_scales, weights=_q5_k),
        "Q6_K": Kernel(scales=_q6_k_scales, weights=_q6_k),
    }
)
