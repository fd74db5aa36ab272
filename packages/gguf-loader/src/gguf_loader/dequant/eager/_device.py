"""Some types again, for devices other than the CPU: as few operations as torch lets it be.

There an operation costs the host more than it costs the device to move a few million weights, and strided and broadcast
operands cost next to nothing, so that fields of bits are taken out of the blocks where they lie. A CPU is slower this
way. Layouts: ggml `ggml-common.h`; `b`, `w` and the tables are those of the other kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ._codebook import IQ4_VALUES, pair_table
from ._k import q2_k, q4_k
from ._kernel import Kernel
from ._lanes import Lanes, scaled, signed, unsigned

_PAIRS = (0, 2, 4, 6)


def _times(lanes: Lanes, integers: Tensor, d: Tensor) -> Tensor:
    """Integers times the float32 number of their block."""
    return torch.mul(integers, d, out=lanes.take("scale", tuple(integers.shape), torch.float32))


def _d(b: Tensor, lanes: Lanes, at: int) -> Tensor:
    return lanes.halves("d", b[:, at : at + 2])


def _q2_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    nibbles = unsigned(lanes.fields("q", b[:, :16], 16, (0, 4), 15)).view(-1, 2, 16)
    return _times(lanes, nibbles.transpose(0, 1), lanes.numbers("d", b[:, 80:84], (1, -1))).unbind(0)


def _q3_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # Bytes 0-7 hold the low nibbles of scales 0-7 and 8-15; the 2-bit fields of bytes 8-11 the high bits of four each.
    six = lanes.fields("q", b[:, 96:104], 8, (0, 4), 15)
    six.add_(lanes.fields("extra", b[:, 104:108], 4, _PAIRS, 3), alpha=16)
    return (_times(lanes, signed(six, bias=32).view(-1, 16), _d(b, lanes, 108)),)


def _q3_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    q = lanes.fields("q", b[:, 32:96], 32, _PAIRS, 3)
    q.add_(lanes.fields("extra", b[:, :32], 32, tuple(range(8)), 1), alpha=4)
    scaled(w, signed(q, bias=4), scale)


def _q4_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # Of scales (first int32) and minima (second): 6 bits of four, and the top two bits of the other four, whose low
    # nibbles the third int32 has, those of the minima as its high nibbles.
    words = b[:, 4:16].view(torch.int32).t()
    six = lanes.take("q", (2, b.shape[0], 2), torch.int32)
    torch.bitwise_and(words[:2], 0x3F3F3F3F, out=six[:, :, 0])
    top, low = (lanes.take(name, (2, b.shape[0]), torch.int32) for name in ("x", "y"))
    torch.bitwise_right_shift(words[:2], 2, out=top).bitwise_and_(0x30303030)
    torch.bitwise_right_shift(words[2], lanes.column((0, 4), torch.int32), out=low).bitwise_and_(0x0F0F0F0F)
    torch.bitwise_or(top, low, out=six[:, :, 1])
    return _times(lanes, six.view(torch.uint8), lanes.numbers("d", b[:, :4], (1, -1))).unbind(0)


def _q5_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor, offset: Tensor) -> None:
    q = lanes.fields("q", b[:, 48:], 32, (0, 4), 15)
    q.add_(lanes.fields("extra", b[:, 16:48], 32, tuple(range(8)), 1), alpha=16)
    scaled(w, unsigned(q), scale, offset)


def _q6_k_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (_times(lanes, b[:, 192:208].view(torch.int8), _d(b, lanes, 208)),)


def _q6_k(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # Each half: 64 bytes whose nibbles are runs 0-1 (low) and 2-3 (high), 32 bytes with two more bits for every run.
    q = lanes.fields("q", b[:, :128], 64, (0, 4), 15)
    q.add_(lanes.fields("extra", b[:, 128:192], 32, _PAIRS, 3), alpha=16)
    scaled(w, signed(q, bias=32), scale)


def _iq4(packed: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    """Low codes of 16 bytes, then their high codes: the entries do not move, and are read in another order."""
    index = lanes.integers("index", packed.view(torch.int16)).bitwise_and_(0xFFFF).view(-1)
    entries = lanes.take("q", (index.numel(),), torch.int32)
    torch.index_select(lanes.table(pair_table, IQ4_VALUES), 0, index, out=entries)
    values = entries.view(torch.int8).view(-1, 8, 2, 2).transpose(1, 2)
    torch.mul(values, scale.view(-1, 1, 1, 1), out=w.view(values.shape))


def _iq4_nl_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (_d(b, lanes, 0),)


def _iq4_nl(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    _iq4(b[:, 2:], w, lanes, scale)


def _iq4_xs_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # Eight 6-bit scales: two high bits each in an int16, low nibbles in four bytes.
    six = lanes.take("q", (b.shape[0], 8), torch.int16)
    shifts = lanes.column(tuple(range(0, 16, 2)), torch.int16).view(-1)
    torch.bitwise_right_shift(b[:, 2:4].view(torch.int16), shifts, out=six).bitwise_and_(3)
    low = lanes.take("x", (b.shape[0], 4, 2))
    torch.bitwise_right_shift(b[:, 4:8].unsqueeze(-1), lanes.column((0, 4), torch.uint8).view(-1), out=low)
    torch.add(low.bitwise_and_(15).view(-1, 8), six, alpha=16, out=six)
    return (_times(lanes, six.sub_(32), _d(b, lanes, 0)),)


def _iq4_xs(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    _iq4(b[:, 8:], w, lanes, scale)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "Q2_K": Kernel(scales=_q2_k_scales, weights=q2_k),
        "Q3_K": Kernel(scales=_q3_k_scales, weights=_q3_k),
        "Q4_K": Kernel(scales=_q4_k_scales, weights=q4_k),
        "Q5_K": Kernel(scales=_q4_k_scales, weights=_q5_k),
        "Q6_K": Kernel(scales=_q6_k_scales, weights=_q6_k),
        "IQ4_NL": Kernel(scales=_iq4_nl_scales, weights=_iq4_nl),
        "IQ4_XS": Kernel(scales=_iq4_xs_scales, weights=_iq4_xs),
    }
)
