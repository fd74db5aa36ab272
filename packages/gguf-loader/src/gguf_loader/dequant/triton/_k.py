"""Decoding functions of the K types; layouts as in the kernels for eager torch."""

# The bodies of kernels are Triton's language, which Python's type checkers do not know.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from ._kernel import byte, half, nibble, signed_byte


@triton.jit
def q2_k(p, g, i, table, mask):
    """Scale and minimum nibbles of 16 groups of two runs, 64 bytes of 2-bit planes, two float16."""
    packed = byte(p + g // 2, mask)
    q = (byte(p + 16 + (g // 16) * 32 + (g % 4) * 8 + i, mask) >> (2 * ((g // 4) % 4))) & 3
    scale = half(p + 80, mask) * (packed & 15).to(tl.float32)
    return scale * q.to(tl.float32) - half(p + 82, mask) * (packed >> 4).to(tl.float32)


@triton.jit
def q3_k(p, g, i, table, mask):
    """32 bytes of third bits, 64 bytes of 2-bit planes, 12 bytes of 6-bit scales of two runs each."""
    plane, group, place = g // 4, g // 2, (g % 4) * 8 + i
    third = (byte(p + place, mask) >> plane) & 1
    q = ((byte(p + 32 + (g // 16) * 32 + place, mask) >> (2 * (plane % 4))) & 3) | (third << 2)
    low = nibble(byte(p + 96 + group % 8, mask), group // 8)
    high = (byte(p + 104 + group % 4, mask) >> (2 * (group // 4))) & 3
    scale = half(p + 108, mask) * ((low | (high << 4)) - 32).to(tl.float32)
    return scale * (q - 4).to(tl.float32)


@triton.jit
def six_bits(p, group, high_nibble, first, mask):
    """6-bit scale (first = 0) or minimum (first = 4) of a group of 32, from the 12 bytes at `p`."""
    own = byte(p + first + group % 4, mask)
    shared = nibble(byte(p + 8 + group % 4, mask), high_nibble)
    return tl.where(group < 4, own & 63, shared | ((own >> 6) << 4))


@triton.jit
def with_minimum(p, group, q, mask):
    """`d * scale * q - dmin * minimum`, the float16 and the 12 bytes being those at the start of the block."""
    scale = half(p, mask) * six_bits(p + 4, group, 0, 0, mask).to(tl.float32)
    return scale * q.to(tl.float32) - half(p + 2, mask) * six_bits(p + 4, group, 1, 4, mask).to(tl.float32)


@triton.jit
def q4_k(p, g, i, table, mask):
    """Two float16, 12 bytes of scales and minima, 32 bytes for two groups: low nibbles, then high nibbles."""
    q = nibble(byte(p + 16 + (g // 8) * 32 + (g % 4) * 8 + i, mask), (g // 4) % 2)
    return with_minimum(p, g // 4, q, mask)


@triton.jit
def q5_k(p, g, i, table, mask):
    """As q4_k, with 32 bytes before the nibbles whose bits are the fifth bits of the eight groups."""
    group, place = g // 4, (g % 4) * 8 + i
    fifth = (byte(p + 16 + place, mask) >> group) & 1
    q = nibble(byte(p + 48 + (group // 2) * 32 + place, mask), group % 2) | (fifth << 4)
    return with_minimum(p, group, q, mask)


@triton.jit
def q6_k(p, g, i, table, mask):
    """Halves of 64 bytes of nibbles and 32 bytes of 2-bit planes; 16 signed scales and a float16 at the end."""
    part, plane, place = g // 16, (g // 4) % 4, (g % 4) * 8 + i
    low = nibble(byte(p + part * 64 + (plane % 2) * 32 + place, mask), plane // 2)
    high = (byte(p + 128 + part * 32 + place, mask) >> (2 * plane)) & 3
    scale = half(p + 208, mask) * signed_byte(p + 192 + g // 2, mask).to(tl.float32)
    return scale * ((low | (high << 4)) - 32).to(tl.float32)
