"""Decoding functions of the grid types; layouts as in the kernels for eager torch, and the same tables.

`table` is the bytes of the table: 8 (or 4) signed weights for each entry.
"""

# The bodies of kernels are Triton's language, which Python's type checkers do not know.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from ._kernel import byte, half, nibble, short, signed_byte


@triton.jit
def word(p, mask):
    """The four bytes at `p`, lowest first, as int32."""
    return short(p, mask) | (short(p + 2, mask) << 16)


@triton.jit
def minus_of_seven(pattern, place):
    """Whether the weight at `place` of eight is negative: seven stored signs, and one that makes their number even."""
    parity = pattern ^ (pattern >> 4)
    parity ^= parity >> 2
    parity ^= parity >> 1
    return ((pattern | ((parity & 1) << 7)) >> place) & 1


@triton.jit
def quarter_scale(d, nibbles):
    """`d * (0.5 + s) / 4`."""
    return d * (nibbles.to(tl.float32) + 0.5) * 0.25


@triton.jit
def iq2_xxs(p, g, i, table, mask):
    """Groups of four runs: four bytes of points, and four 7-bit sign patterns with a 4-bit scale on top."""
    group, eight = p + 2 + (g // 4) * 8, g % 4
    words = word(group + 4, mask)
    index = byte(group + eight, mask) | (((words >> (7 * eight)) & 127) << 8)
    scale = quarter_scale(half(p, mask), (words >> 28) & 15)
    return scale * signed_byte(table + index * 8 + i, mask).to(tl.float32)


@triton.jit
def iq2_xs(p, g, i, table, mask):
    """32 shorts, each an index of the signed table; 16 scales of four bits, for two runs each."""
    index = short(p + 2 + g * 2, mask)
    scale = quarter_scale(half(p, mask), nibble(byte(p + 66 + g // 4, mask), (g // 2) % 2))
    return scale * signed_byte(table + index * 8 + i, mask).to(tl.float32)


@triton.jit
def iq2_s(p, g, i, table, mask):
    """32 bytes of points, 32 of signs, 8 of two more bits a point, 8 of scales."""
    high = (byte(p + 66 + g // 4, mask) >> (2 * (g % 4))) & 3
    q = signed_byte(table + (byte(p + 2 + g, mask) | (high << 8)) * 8 + i, mask)
    minus = (byte(p + 34 + g, mask) >> i) & 1
    scale = quarter_scale(half(p, mask), nibble(byte(p + 74 + g // 4, mask), (g // 2) % 2))
    return scale * tl.where(minus == 1, -q, q).to(tl.float32)


@triton.jit
def iq3_xxs(p, g, i, table, mask):
    """64 bytes of points of four weights, two a run; words as in iq2_xxs."""
    words = word(p + 66 + (g // 4) * 4, mask)
    q = signed_byte(table + byte(p + 2 + g * 2 + i // 4, mask) * 4 + i % 4, mask)
    minus = minus_of_seven((words >> (7 * (g % 4))) & 127, i)
    scale = half(p, mask) * (((words >> 28) & 15).to(tl.float32) + 0.5) * 0.5
    return scale * tl.where(minus == 1, -q, q).to(tl.float32)


@triton.jit
def iq3_s(p, g, i, table, mask):
    """64 bytes of points of four weights, two a run, 8 of their ninth bits, 32 of signs, 4 of scales."""
    ninth = (byte(p + 66 + g // 4, mask) >> ((g % 4) * 2 + i // 4)) & 1
    q = signed_byte(table + (byte(p + 2 + g * 2 + i // 4, mask) | (ninth << 8)) * 4 + i % 4, mask)
    minus = (byte(p + 74 + g, mask) >> i) & 1
    scale = half(p, mask) * (1 + 2 * nibble(byte(p + 106 + g // 8, mask), (g // 4) % 2)).to(tl.float32)
    return scale * tl.where(minus == 1, -q, q).to(tl.float32)


@triton.jit
def iq1_s(p, g, i, table, mask):
    """32 bytes of points; shorts of four times three high bits, a 3-bit scale, and the sign of the shift."""
    top = short(p + 34 + (g // 4) * 2, mask)
    index = byte(p + 2 + g, mask) | (((top >> (3 * (g % 4))) & 7) << 8) | ((top >> 15) << 11)
    scale = half(p, mask) * (2 * ((top >> 12) & 7) + 1).to(tl.float32) * 0.125
    return scale * signed_byte(table + index * 8 + i, mask).to(tl.float32)


@triton.jit
def iq1_m(p, g, i, table, mask):
    """32 bytes of points, nibbles of three high bits and the sign of the shift, 3-bit scales around a float16."""
    index = byte(p + g, mask) | (nibble(byte(p + 32 + g // 2, mask), g % 2) << 8)
    spread = (byte(p + 49, mask) >> 4) | (byte(p + 51, mask) & 0xF0)
    spread |= ((byte(p + 53, mask) & 0xF0) << 4) | ((byte(p + 55, mask) & 0xF0) << 8)
    d = spread.to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)
    scale = (short(p + 48 + (g // 8) * 2, mask) >> (3 * ((g % 8) // 2))) & 7
    return d * (2 * scale + 1).to(tl.float32) * 0.125 * signed_byte(table + index * 8 + i, mask).to(tl.float32)
