"""Dequantisation of the ternary types: weights of -1, 0 and 1 times one scale a block of 256.

Layouts: ggml `ggml-common.h` (block_tq1_0, block_tq2_0).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ._kernel import Kernel
from ._lanes import Lanes, scaled, signed


def _tq1_0_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (lanes.halves("scale", b[:, 52:54]),)


def _digits(lanes: Lanes, x: Tensor) -> list[Tensor]:
    """The five base-3 digits of each byte less 1, as lanes, a plane for each place.

    The byte is a fraction of 256: 3 * x / 256, rounded down, is the first digit, and 3 * x mod 256 what is left of it.
    """
    fraction = lanes.take("index", tuple(x.shape), torch.int16).copy_(x)
    product = lanes.take("bit", tuple(x.shape), torch.int16)
    # Less 256 before the shift is less 1 after it, and is nothing to the eight bits below.
    one_less = torch.full((), -256, dtype=torch.int16, device=lanes.device)
    planes = []
    for place in range(5):
        torch.add(one_less, fraction, alpha=3, out=product)
        if place < 4:
            torch.bitwise_and(product, 255, out=fraction)
        plane = lanes.take(f"plane{place}", tuple(x.shape), torch.int8).copy_(product.bitwise_right_shift_(8))
        planes.append(plane.view(torch.int64))
    return planes


def _tq1_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # 32 bytes of five digits, 16 bytes of five, 4 bytes of four: digit by digit, 160 + 80 + 16 weights. All first parts
    # lie before all second ones and those before the last, so that the digits of a part are whole planes.
    n = b.shape[0]
    x = lanes.take("x", (-(-52 * n // 8) * 8,))
    for part, columns in ((x[: 32 * n], b[:, :32]), (x[32 * n : 48 * n], b[:, 32:48]), (x[48 * n :], b[:, 48:52])):
        part[: columns.numel()].view(columns.shape).copy_(columns)
    planes = _digits(lanes, x)
    first = lanes.interleave("q", [plane[: 4 * n] for plane in planes], 32)
    second = lanes.interleave("extra", [plane[4 * n : 6 * n] for plane in planes], 16)
    last = lanes.take("last", (n, 4), torch.int32)
    torch.stack([plane.view(torch.int32)[12 * n : 13 * n] for plane in planes[:4]], 1, out=last)
    w[:, :160].copy_(signed(first).view(n, 160))
    w[:, 160:240].copy_(signed(second).view(n, 80))
    w[:, 240:].copy_(signed(last).view(n, 16))
    w.mul_(scale)


def _tq2_0_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (lanes.halves("scale", b[:, 64:66]),)


def _tq2_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    scaled(w, signed(lanes.fields("q", b[:, :64], 32, (0, 2, 4, 6), 3), bias=1), scale)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "TQ1_0": Kernel(scales=_tq1_0_scales, weights=_tq1_0),
        "TQ2_0": Kernel(scales=_tq2_0_scales, weights=_tq2_0),
    }
)
