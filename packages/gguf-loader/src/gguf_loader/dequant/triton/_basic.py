"""Decoding functions of the plain, codebook and ternary types; layouts as in the kernels for eager torch."""

# The bodies of kernels are Triton's language, which Python's type checkers do not know.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from ._kernel import byte, half, nibble, short, signed_byte


@triton.jit
def q1_0(p, g, i, table, mask):
    """16 bytes of signs, one a run."""
    bit = (byte(p + 2 + g, mask) >> i) & 1
    return half(p, mask) * (2 * bit - 1).to(tl.float32)


@triton.jit
def q2_0(p, g, i, table, mask):
    """16 bytes of four 2-bit numbers, two a run."""
    q = (short(p + 2 + 2 * g, mask) >> (2 * i)) & 3
    return half(p, mask) * (q - 1).to(tl.float32)


@triton.jit
def half_block_nibble(p, g, i, mask):
    """The weight's four bits where 16 bytes hold the low nibbles of two runs, and the high nibbles of the next two."""
    return nibble(byte(p + (g % 2) * 8 + i, mask), g // 2)


@triton.jit
def q4_0(p, g, i, table, mask):
    """16 bytes: two runs of low nibbles, then two of high nibbles."""
    q = half_block_nibble(p + 2, g, i, mask)
    return half(p, mask) * (q - 8).to(tl.float32)


@triton.jit
def q4_1(p, g, i, table, mask):
    """As q4_0, with a minimum."""
    q = half_block_nibble(p + 4, g, i, mask)
    return half(p, mask) * q.to(tl.float32) + half(p + 2, mask)


@triton.jit
def five_bits(p, g, i, mask):
    """4 bytes of fifth bits, one a run, then nibbles as in q4_0."""
    fifth = (byte(p + g, mask) >> i) & 1
    return half_block_nibble(p + 4, g, i, mask) | (fifth << 4)


@triton.jit
def q5_0(p, g, i, table, mask):
    """As q4_0, fifth bits in 4 bytes before the nibbles."""
    return half(p, mask) * (five_bits(p + 2, g, i, mask) - 16).to(tl.float32)


@triton.jit
def q5_1(p, g, i, table, mask):
    """As q5_0, with a minimum."""
    return half(p, mask) * five_bits(p + 4, g, i, mask).to(tl.float32) + half(p + 2, mask)


@triton.jit
def q8_0(p, g, i, table, mask):
    """32 signed bytes."""
    return half(p, mask) * signed_byte(p + 2 + g * 8 + i, mask).to(tl.float32)


@triton.jit
def iq4_nl(p, g, i, table, mask):
    """As q4_0, nibbles being places in `table`."""
    code = half_block_nibble(p + 2, g, i, mask)
    return half(p, mask) * signed_byte(table + code, mask).to(tl.float32)


@triton.jit
def iq4_xs(p, g, i, table, mask):
    """Eight groups of four runs; a scale is 4 bits of bytes 4-7 and 2 bits of bytes 2-3."""
    group = g // 4
    low = nibble(byte(p + 4 + group // 2, mask), group % 2)
    high = (byte(p + 2 + group // 4, mask) >> (2 * (group % 4))) & 3
    scale = half(p, mask) * ((low | (high << 4)) - 32).to(tl.float32)
    code = half_block_nibble(p + 8 + group * 16, g % 4, i, mask)
    return scale * signed_byte(table + code, mask).to(tl.float32)


@triton.jit
def mxfp4(p, g, i, table, mask):
    """An exponent byte (halved, for the values of `table` are doubled) and 16 bytes of codes."""
    exponent = byte(p, mask)
    bits = tl.where(exponent < 2, 0x00200000 << exponent, (exponent - 1) << 23)
    code = half_block_nibble(p + 1, g, i, mask)
    return bits.to(tl.float32, bitcast=True) * signed_byte(table + code, mask).to(tl.float32)


@triton.jit
def nvfp4(p, g, i, table, mask):
    """Four groups of two runs, each group with an unsigned float of 4 exponent and 3 mantissa bits, halved."""
    raw = byte(p + g // 2, mask)
    exponent, mantissa = (raw >> 3) & 15, raw & 7
    normal = (((exponent + 119) << 23) | (mantissa << 20)).to(tl.float32, bitcast=True)
    scale = tl.where(exponent == 0, mantissa.to(tl.float32) * 0.0009765625, normal)
    code = nibble(byte(p + 4 + (g // 2) * 8 + i, mask), g % 2)
    return tl.where(raw == 127, 0.0, scale) * signed_byte(table + code, mask).to(tl.float32)


@triton.jit
def power_of_three(digit):
    """`3 ** digit`, up to 81."""
    return tl.where(digit == 0, 1, tl.where(digit == 1, 3, tl.where(digit == 2, 9, tl.where(digit == 3, 27, 81))))


@triton.jit
def tq1_0(p, g, i, table, mask):
    """Base-3 fractions: 32 bytes of five digits (20 runs), 16 of five (10 runs), 4 of four (the last two runs)."""
    early, late = g < 20, g >= 30
    place = tl.where(late, 48 + i % 4, tl.where(early, (g % 4) * 8, 32 + (g % 2) * 8) + i)
    late_power = power_of_three((g - 30) * 2 + i // 4)
    power = tl.where(late, late_power, power_of_three(tl.where(early, g // 4, (g - 20) // 2)))
    fraction = (byte(p + place, mask) * power) & 255
    return half(p + 52, mask) * (((fraction * 3) >> 8) - 1).to(tl.float32)


@triton.jit
def tq2_0(p, g, i, table, mask):
    """Two halves of 32 bytes, four 2-bit planes each."""
    q = (byte(p + (g // 16) * 32 + (g % 4) * 8 + i, mask) >> (2 * ((g // 4) % 4))) & 3
    return half(p + 64, mask) * (q - 1).to(tl.float32)
