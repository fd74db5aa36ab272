"""Decoding functions of the plain, codebook and ternary types; layouts as in the kernels for eager torch."""

# The bodies of kernels are Triton's language, which Python's type checkers do not know.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

from ._triton_kernel import byte, half, nibble, signed_byte


@triton.jit
def q1_0(p, e, table, mask):
    """16 bytes of signs."""
    bit = (byte(p + 2 + e // 8, mask) >> (e % 8)) & 1
    return half(p, mask) * (2 * bit - 1).to(tl.float32)


@triton.jit
def q2_0(p, e, table, mask):
    """16 bytes of four 2-bit numbers."""
    q = (byte(p + 2 + e // 4, mask) >> (2 * (e % 4))) & 3
    return half(p, mask) * (q - 1).to(tl.float32)


@triton.jit
def q4_0(p, e, table, mask):
    """16 bytes: low nibbles, then high nibbles."""
    q = nibble(byte(p + 2 + e % 16, mask), e // 16)
    return half(p, mask) * (q - 8).to(tl.float32)


@triton.jit
def q4_1(p, e, table, mask):
    """As q4_0, with a minimum."""
    q = nibble(byte(p + 4 + e % 16, mask), e // 16)
    return half(p, mask) * q.to(tl.float32) + half(p + 2, mask)


@triton.jit
def q5_0(p, e, table, mask):
    """As q4_0, fifth bits in 4 bytes before the nibbles."""
    fifth = (byte(p + 2 + e // 8, mask) >> (e % 8)) & 1
    q = nibble(byte(p + 6 + e % 16, mask), e // 16) | (fifth << 4)
    return half(p, mask) * (q - 16).to(tl.float32)


@triton.jit
def q5_1(p, e, table, mask):
    """As q5_0, with a minimum."""
    fifth = (byte(p + 4 + e // 8, mask) >> (e % 8)) & 1
    q = nibble(byte(p + 8 + e % 16, mask), e // 16) | (fifth << 4)
    return half(p, mask) * q.to(tl.float32) + half(p + 2, mask)


@triton.jit
def q8_0(p, e, table, mask):
    """32 signed bytes."""
    return half(p, mask) * signed_byte(p + 2 + e, mask).to(tl.float32)


@triton.jit
def iq4_nl(p, e, table, mask):
    """As q4_0, nibbles being places in `table`."""
    code = nibble(byte(p + 2 + e % 16, mask), e // 16)
    return half(p, mask) * signed_byte(table + code, mask).to(tl.float32)


@triton.jit
def iq4_xs(p, e, table, mask):
    """Eight groups of 32 codes; a scale is 4 bits of bytes 4-7 and 2 bits of bytes 2-3."""
    group = e // 32
    low = nibble(byte(p + 4 + group // 2, mask), group % 2)
    high = (byte(p + 2 + group // 4, mask) >> (2 * (group % 4))) & 3
    scale = half(p, mask) * ((low | (high << 4)) - 32).to(tl.float32)
    code = nibble(byte(p + 8 + group * 16 + e % 16, mask), (e % 32) // 16)
    return scale * signed_byte(table + code, mask).to(tl.float32)


@triton.jit
def mxfp4(p, e, table, mask):
    """An exponent byte (halved, for the values of `table` are doubled) and 16 bytes of codes."""
    exponent = byte(p, mask)
    bits = tl.where(exponent < 2, 0x00200000 << exponent, (exponent - 1) << 23)
    code = nibble(byte(p + 1 + e % 16, mask), e // 16)
    return bits.to(tl.float32, bitcast=True) * signed_byte(table + code, mask).to(tl.float32)


@triton.jit
def nvfp4(p, e, table, mask):
    """Four groups of 16 codes, each with an unsigned float of 4 exponent and 3 mantissa bits, halved."""
    raw = byte(p + e // 16, mask)
    exponent, mantissa = (raw >> 3) & 15, raw & 7
    normal = (((exponent + 119) << 23) | (mantissa << 20)).to(tl.float32, bitcast=True)
    scale = tl.where(exponent == 0, mantissa.to(tl.float32) * 0.0009765625, normal)
    code = nibble(byte(p + 4 + (e // 16) * 8 + e % 8, mask), (e % 16) // 8)
    return tl.where(raw == 127, 0.0, scale) * signed_byte(table + code, mask).to(tl.float32)


@triton.jit
def tq1_0(p, e, table, mask):
    """Base-3 fractions: 32 bytes of five digits, 16 bytes of five, 4 bytes of four."""
    late = e >= 240
    middle = (e >= 160) & (e < 240)
    run = tl.where(late, 4, tl.where(middle, 16, 32))
    place = tl.where(late, e - 240, tl.where(middle, e - 160, e))
    first = tl.where(late, 48, tl.where(middle, 32, 0))
    digit = place // run
    power = tl.where(digit == 0, 1, tl.where(digit == 1, 3, tl.where(digit == 2, 9, tl.where(digit == 3, 27, 81))))
    fraction = (byte(p + first + place % run, mask) * power) & 255
    return half(p + 52, mask) * (((fraction * 3) >> 8) - 1).to(tl.float32)


@triton.jit
def tq2_0(p, e, table, mask):
    """Two halves of 32 bytes, four 2-bit planes each."""
    q = (byte(p + (e // 128) * 32 + e % 32, mask) >> (2 * ((e % 128) // 32))) & 3
    return half(p + 64, mask) * (q - 1).to(tl.float32)
