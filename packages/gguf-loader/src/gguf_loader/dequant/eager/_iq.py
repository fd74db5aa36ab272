"""Dequantisation of the IQ types of 1 to 3 bits: groups of weights are points of a grid, with signs beside it.

Layouts: ggml `ggml-common.h` (block_iq2_xxs and so on). The grids are constants of the format that come from the
`gguf` package when such a type is first met. A grid entry is 4 or 8 weights of a byte each, looked up as one integer;
where the signs' bits fit into the index, the table holds the signed entries.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ._kernel import Kernel
from ._lanes import Lanes, scaled, signed


def _grid(name: str) -> Tensor:
    """The points of a grid, int64 of shape (points, 4 or 8)."""
    from gguf import quants

    kind = getattr(quants, name)
    kind.init_grid()
    return torch.from_numpy(kind.grid).squeeze().long()


def _entries(points: Tensor) -> Tensor:
    """Points of 4 or 8 weights as integers of as many bytes."""
    return points.to(torch.int8).view({4: torch.int32, 8: torch.int64}[points.shape[1]]).view(-1)


def _sign_bits(codes: Tensor) -> Tensor:
    """Seven stored signs, and the eighth that makes the number of minus signs even, as (codes, 8) of 0 and 1."""
    seven = (codes.unsqueeze(1) >> torch.arange(7)) & 1
    return torch.cat([seven, seven.sum(1, keepdim=True) & 1], 1)


def _signed(name: str, grid_bits: int) -> Tensor:
    """Grid points under all 128 sign patterns: index = point | pattern << grid_bits."""
    signs = 1 - 2 * _sign_bits(torch.arange(128))
    points = _grid(name).unsqueeze(0) * signs.unsqueeze(1)
    return _entries(points.reshape(128 << grid_bits, 8))


@functools.cache
def iq2_xxs_table() -> Tensor:
    """Signed points: index = point (8 bits) | sign pattern << 8."""
    return _signed("IQ2_XXS", 8)


@functools.cache
def iq2_xs_table() -> Tensor:
    """Signed points: index = point (9 bits) | sign pattern << 9."""
    return _signed("IQ2_XS", 9)


@functools.cache
def iq2_s_table() -> Tensor:
    """1024 points of eight weights."""
    return _entries(_grid("IQ2_S"))


@functools.cache
def iq3_xxs_table() -> Tensor:
    """256 points of four weights."""
    return _entries(_grid("IQ3_XXS"))


@functools.cache
def iq3_s_table() -> Tensor:
    """512 points of four weights."""
    return _entries(_grid("IQ3_S"))


@functools.cache
def iq1_table() -> Tensor:
    """Points times 8, plus 1, then the same minus 1: index = point (11 bits) | sign of the shift << 11."""
    points = _grid("IQ1_S") * 8
    return _entries(torch.cat([points + 1, points - 1]))


@functools.cache
def _minus_table() -> Tensor:
    """Eight sign bits as eight bytes: 0, or -1 for a minus."""
    return _entries(-((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1))


@functools.cache
def _minus_table_of_seven() -> Tensor:
    """Seven sign bits, and the one that follows from them, as eight bytes: 0, or -1 for a minus."""
    return _entries(-_sign_bits(torch.arange(128)))


def _negated(points: Tensor, minus: Tensor) -> Tensor:
    """The bytes of `points`, signs flipped where the bytes of `minus` are -1, as int8: (p ^ m) - m."""
    flipped = points.bitwise_xor_(minus)
    return flipped.view(torch.int8).sub_(minus.view(torch.int8))


def _fields(lanes: Lanes, source: Tensor, shifts: range, mask: int) -> Tensor:
    """`(source >> shift) & mask` for each shift, as a last dimension, int32."""
    shift = torch.arange(shifts.start, shifts.stop, shifts.step, dtype=torch.int32, device=lanes.device)
    wide = lanes.integers("source", source).unsqueeze(-1)
    out = lanes.take("index", (*source.shape, len(shifts)), torch.int32)
    return torch.bitwise_right_shift(wide, shift, out=out).bitwise_and_(mask)


def _d(b: Tensor, lanes: Lanes, at: int = 0) -> Tensor:
    return lanes.halves("d", b[:, at : at + 2])


def _nibble_scales(b: Tensor, lanes: Lanes, at: int, count: int) -> Tensor:
    nibbles = _fields(lanes, b[:, at : at + count], range(0, 8, 4), 15)
    return lanes.floats("scale", nibbles.view(-1, 2 * count))


def _iq2_xxs_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    words = lanes.gather("x", b[:, 2:66].view(torch.int16)).view(torch.int32)[:, 1::2]
    scale = lanes.floats("scale", (words >> 28) & 15)
    return (scale.add_(0.5).mul_(_d(b, lanes)).mul_(0.25),)


def _iq2_xxs(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # Groups of 32 weights: four grid bytes, then four 7-bit sign patterns and the scale in an int32.
    words = lanes.gather("x", b[:, 2:66].view(torch.int16)).view(torch.int32).view(-1, 2)
    index = _fields(lanes, words[:, 1], range(0, 28, 7), 127)
    index.bitwise_left_shift_(8).bitwise_or_(words[:, :1].contiguous().view(torch.uint8))
    scaled(w, signed(lanes.lookup("q", lanes.table(iq2_xxs_table), index)), scale)


def _iq2_xs_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (_nibble_scales(b, lanes, 66, 8).add_(0.5).mul_(_d(b, lanes)).mul_(0.25),)


def _iq2_xs(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # 9 bits of the point and 7 of the signs: the int16 is the index of the signed table as it stands.
    index = lanes.integers("index", b[:, 2:66].view(torch.int16)).bitwise_and_(0xFFFF)
    scaled(w, signed(lanes.lookup("q", lanes.table(iq2_xs_table), index)), scale)


def _iq2_s_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (_nibble_scales(b, lanes, 74, 8).add_(0.5).mul_(_d(b, lanes)).mul_(0.25),)


def _iq2_s(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    index = _fields(lanes, b[:, 66:74], range(0, 8, 2), 3).view(-1, 32)
    index.bitwise_left_shift_(8).bitwise_or_(b[:, 2:34])
    points = lanes.lookup("q", lanes.table(iq2_s_table), index)
    minus = lanes.lookup("extra", lanes.table(_minus_table), lanes.integers("index", b[:, 34:66]))
    scaled(w, _negated(points, minus), scale)


def _iq3_xxs_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    words = lanes.gather("x", b[:, 66:98].view(torch.int16)).view(torch.int32)
    return (lanes.floats("scale", (words >> 28) & 15).add_(0.5).mul_(_d(b, lanes)).mul_(0.5),)


def _iq3_xxs(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    points = lanes.lookup("q", lanes.table(iq3_xxs_table), lanes.integers("index", b[:, 2:66]))
    words = lanes.gather("x", b[:, 66:98].view(torch.int16)).view(torch.int32)
    signs = _fields(lanes, words, range(0, 28, 7), 127)
    minus = lanes.lookup("extra", lanes.table(_minus_table_of_seven), signs)
    scaled(w, _negated(points, minus), scale)


def _iq3_s_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    return (_nibble_scales(b, lanes, 106, 4).mul_(2).add_(1).mul_(_d(b, lanes)),)


def _iq3_s(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    index = _fields(lanes, b[:, 66:74], range(8), 1).view(-1, 64)
    index.bitwise_left_shift_(8).bitwise_or_(b[:, 2:66])
    points = lanes.lookup("q", lanes.table(iq3_s_table), index)
    minus = lanes.lookup("extra", lanes.table(_minus_table), lanes.integers("index", b[:, 74:106]))
    scaled(w, _negated(points, minus), scale)


def _iq1_s_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    high = lanes.integers("index", b[:, 34:50].view(torch.int16))
    scale = lanes.floats("scale", (high >> 12) & 7)
    return (scale.mul_(2).add_(1).mul_(_d(b, lanes)).mul_(0.125),)


def _iq1_s(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # An int16 for 32 weights: four times 3 high bits of the point, 3 bits of scale, the sign of the delta.
    high = b[:, 34:50].view(torch.int16)
    index = _fields(lanes, high, range(0, 12, 3), 7)
    delta = lanes.integers("bit", high).bitwise_and_(0x8000).bitwise_right_shift_(4).unsqueeze(-1)
    index.bitwise_left_shift_(8).bitwise_or_(delta)
    index = index.view(-1, 32).bitwise_or_(b[:, 2:34])
    scaled(w, signed(lanes.lookup("q", lanes.table(iq1_table), index)), scale)


def _iq1_m_scales(b: Tensor, lanes: Lanes) -> tuple[Tensor, ...]:
    # The float16 of the block is spread over the top nibbles of the four int16 of scales.
    words = lanes.integers("x", b[:, 48:56].view(torch.int16))
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=lanes.device)
    d = (((words >> 12) & 15) << shifts).sum(1, keepdim=True).to(torch.int16).view(torch.float16).float()
    scale = lanes.floats("scale", _fields(lanes, words, range(0, 12, 3), 7).view(-1, 16))
    return (scale.mul_(2).add_(1).mul_(d).mul_(0.125),)


def _iq1_m(b: Tensor, w: Tensor, lanes: Lanes, scale: Tensor) -> None:
    # A nibble for 8 weights: 3 high bits of the point and the sign of the delta, which is the index's top bits.
    index = _fields(lanes, b[:, 32:48], range(0, 8, 4), 15).view(-1, 32)
    index.bitwise_left_shift_(8).bitwise_or_(b[:, :32])
    scaled(w, signed(lanes.lookup("q", lanes.table(iq1_table), index)), scale)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        "IQ1_M": Kernel(scales=_iq1_m_scales, weights=_iq1_m),
        "IQ1_S": Kernel(scales=_iq1_s_scales, weights=_iq1_s),
        "IQ2_S": Kernel(scales=_iq2_s_scales, weights=_iq2_s),
        "IQ2_XS": Kernel(scales=_iq2_xs_scales, weights=_iq2_xs),
        "IQ2_XXS": Kernel(scales=_iq2_xxs_scales, weights=_iq2_xxs),
        "IQ3_S": Kernel(scales=_iq3_s_scales, weights=_iq3_s),
        "IQ3_XXS": Kernel(scales=_iq3_xxs_scales, weights=_iq3_xxs),
    }
)
