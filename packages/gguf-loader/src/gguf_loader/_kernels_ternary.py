"""Dequantisation of the ternary types: weights of -1, 0 and 1 times one scale a block of 256.

Layouts: ggml `ggml-common.h` (block_tq1_0, block_tq2_0).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ._kernel import Kernel
from ._lanes import LOW_PAIRS, Lanes, scaled, signed

_EVEN_BYTES = 0x00FF00FF00FF00FF
_EVEN_TRITS = 0x0003000300030003
_ODD_TRITS = 0x0300030003000300


def _tq1_0_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (lanes.halves("scale", b[:, 52:54]),)


def _trits(lanes: Lanes, x: Tensor, power: int) -> Tensor:
    """Digit `power` of each byte, which is a base-3 fraction of 256: 3 * (3^power * x mod 256) / 256, rounded down.

    Two bytes share a 16-bit lane while they are multiplied, so even and odd bytes take turns.
    """
    fraction = torch.mul(x, 3**power, out=lanes.take("extra", tuple(x.shape))).view(-1).view(torch.int64)
    even = lanes.bits("plane0", fraction, 0, _EVEN_BYTES)
    even.mul_(3).bitwise_right_shift_(8).bitwise_and_(_EVEN_TRITS)
    odd = lanes.bits("plane1", fraction, 8, _EVEN_BYTES)
    return odd.mul_(3).bitwise_and_(_ODD_TRITS).bitwise_or_(even).view(torch.uint8).view(x.shape)


def _tq1_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # 32 bytes of five digits, 16 bytes of five, 4 bytes of four: digit by digit, 160 + 80 + 16 weights.
    n = b.shape[0]
    x = lanes.take("x", (n, 56))
    x[:, :52].copy_(b[:, :52])
    q = lanes.take("q", (n, 256))
    for power in range(5):
        digit = _trits(lanes, x, power)
        q[:, 32 * power : 32 * power + 32].copy_(digit[:, :32])
        q[:, 160 + 16 * power : 176 + 16 * power].copy_(digit[:, 32:48])
        if power < 4:
            q[:, 240 + 4 * power : 244 + 4 * power].copy_(digit[:, 48:52])
    scaled(w, q.sub_(1).view(torch.int8), scale)


def _tq2_0_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (lanes.halves("scale", b[:, 64:66]),)


def _tq2_0(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    x = lanes.gather_lanes("x", b[:, :64])
    planes = [lanes.bits(f"plane{i}", x, 2 * i, LOW_PAIRS) for i in range(4)]
    scaled(w, signed(lanes.interleave("q", planes, 32), bias=1), scale)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "TQ1_0": Kernel(scales=_tq1_0_scales, weights=_tq1_0),
        "TQ2_0": Kernel(scales=_tq2_0_scales, weights=_tq2_0),
    }
)
