"""The block formats, one weight at a time, as plainly as they can be said; slow, and written apart from the kernels.

Each function takes the bytes of a block and the place of a weight, and returns the weight as a Python float. Python
floats are doubles, and every product here is exact in them; a result is rounded to float32 once, by the caller.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def half(block: bytes, at: int) -> float:
    (value,) = struct.unpack_from("<e", block, at)
    return float(value)


def word(block: bytes, at: int, size: int) -> int:
    return int.from_bytes(block[at : at + size], "little")


def field(value: int, place: int, bits: int) -> int:
    """Field number `place` of so many bits, counted from the lowest."""
    return (value >> (place * bits)) & ((1 << bits) - 1)


def bit(block: bytes, at: int, number: int) -> int:
    return field(block[at + number // 8], number % 8, 1)


def int8(value: int) -> int:
    return value - 256 if value > 127 else value


def q1_0(b: bytes, e: int) -> float:
    return half(b, 0) if bit(b, 2, e) else -half(b, 0)


def q2_0(b: bytes, e: int) -> float:
    return half(b, 0) * (field(b[2 + e // 4], e % 4, 2) - 1)


def q4_0(b: bytes, e: int) -> float:
    return half(b, 0) * (field(b[2 + e % 16], e // 16, 4) - 8)


def q4_1(b: bytes, e: int) -> float:
    return half(b, 0) * field(b[4 + e % 16], e // 16, 4) + half(b, 2)


def q5_0(b: bytes, e: int) -> float:
    return half(b, 0) * (field(b[6 + e % 16], e // 16, 4) + 16 * bit(b, 2, e) - 16)


def q5_1(b: bytes, e: int) -> float:
    return half(b, 0) * (field(b[8 + e % 16], e // 16, 4) + 16 * bit(b, 4, e)) + half(b, 2)


def q8_0(b: bytes, e: int) -> float:
    return half(b, 0) * int8(b[2 + e])


def two_bits(b: bytes, at: int, e: int) -> int:
    """Each 32 bytes hold four planes of 32 weights."""
    return field(b[at + 32 * (e // 128) + e % 32], e % 128 // 32, 2)


def q2_k(b: bytes, e: int) -> float:
    scales = b[e // 16]
    return half(b, 80) * (scales & 15) * two_bits(b, 16, e) - half(b, 82) * (scales >> 4)


def q3_k(b: bytes, e: int) -> float:
    group = e // 16
    scale = field(b[96 + group % 8], group // 8, 4) + 16 * field(b[104 + group % 4], group // 4, 2) - 32
    return half(b, 108) * scale * (two_bits(b, 32, e) - (0 if field(b[e % 32], e // 32, 1) else 4))


def scale_and_minimum(b: bytes, group: int) -> tuple[int, int]:
    """The 12 bytes at 4: six bits each for groups 0 to 3; four and the two that are left over for groups 4 to 7."""
    first, second = b[4 + group % 4], b[8 + group % 4]
    if group < 4:
        return first & 63, second & 63
    shared = b[12 + group % 4]
    return (shared & 15) | (first >> 6 << 4), (shared >> 4) | (second >> 6 << 4)


def q4_k(b: bytes, e: int) -> float:
    scale, minimum = scale_and_minimum(b, e // 32)
    return half(b, 0) * scale * field(b[16 + 32 * (e // 64) + e % 32], e % 64 // 32, 4) - half(b, 2) * minimum


def q5_k(b: bytes, e: int) -> float:
    scale, minimum = scale_and_minimum(b, e // 32)
    q = field(b[48 + 32 * (e // 64) + e % 32], e % 64 // 32, 4) + 16 * field(b[16 + e % 32], e // 32, 1)
    return half(b, 0) * scale * q - half(b, 2) * minimum


def q6_k(b: bytes, e: int) -> float:
    part, run = e // 128, e % 128 // 32
    q = field(b[64 * part + 32 * (run % 2) + e % 32], run // 2, 4) + 16 * two_bits(b, 128, e) - 32
    return half(b, 208) * int8(b[192 + e // 16]) * q


def iq4_nl(b: bytes, e: int) -> float:
    return half(b, 0) * IQ4[field(b[2 + e % 16], e // 16, 4)]


def iq4_xs(b: bytes, e: int) -> float:
    group = e // 32
    scale = field(b[4 + group // 2], group % 2, 4) + 16 * field(word(b, 2, 2), group, 2) - 32
    return half(b, 0) * scale * IQ4[field(b[8 + 16 * group + e % 16], e % 32 // 16, 4)]


def e2m1(code: int) -> float:
    # Code 8 is the format's minus zero; ggml multiplies by integers, which have none.
    return -E2M1[code & 7] if code > 8 else E2M1[code & 7]


def mxfp4(b: bytes, e: int) -> float:
    return math.ldexp(1, b[0] - 127) * e2m1(field(b[1 + e % 16], e // 16, 4))


def nvfp4(b: bytes, e: int) -> float:
    code = b[e // 16] & 127
    exponent, mantissa = code >> 3, code & 7
    scale = math.ldexp(mantissa, -9) if exponent == 0 else math.ldexp(8 + mantissa, exponent - 10)
    # ggml takes 0x7F, which is a NaN in E4M3, for 0, and 0xFF, which has a sign that is not there, for a number.
    return (0.0 if b[e // 16] == 0x7F else scale) * e2m1(field(b[4 + 8 * (e // 16) + e % 8], e % 16 // 8, 4))


def tq1_0(b: bytes, e: int) -> float:
    first, run, start = (0, 32, 0) if e < 160 else (32, 16, 160) if e < 240 else (48, 4, 240)
    digit: int = 3 ** ((e - start) // run)
    return half(b, 52) * ((b[first + e % run] * digit % 256 * 3 >> 8) - 1)


def tq2_0(b: bytes, e: int) -> float:
    return half(b, 64) * (two_bits(b, 0, e) - 1)


@cache
def grid(name: str) -> list[list[float]]:
    from gguf import quants

    kind: Any = getattr(quants, name)
    kind.init_grid()
    points: list[list[float]] = kind.grid[0, 0].tolist()
    return points


def sign(pattern: int, place: int) -> int:
    """Seven signs are stored; the eighth makes the number of minus signs even."""
    whole = pattern | (pattern.bit_count() % 2 << 7)
    return -1 if field(whole, place, 1) else 1


def iq2_xxs(b: bytes, e: int) -> float:
    group, eight = 2 + 8 * (e // 32), e % 32 // 8
    words = word(b, group + 4, 4)
    point = grid("IQ2_XXS")[b[group + eight]][e % 8]
    return half(b, 0) * (0.5 + (words >> 28)) / 4 * point * sign(field(words, eight, 7), e % 8)


def iq2_xs(b: bytes, e: int) -> float:
    code = word(b, 2 + 2 * (e // 8), 2)
    scale = field(b[66 + e // 32], e // 16 % 2, 4)
    return half(b, 0) * (0.5 + scale) / 4 * grid("IQ2_XS")[code & 511][e % 8] * sign(code >> 9, e % 8)


def iq2_s(b: bytes, e: int) -> float:
    eight = e // 8
    point = grid("IQ2_S")[b[2 + eight] + 256 * field(b[66 + eight // 4], eight % 4, 2)][e % 8]
    scale = field(b[74 + e // 32], e // 16 % 2, 4)
    return half(b, 0) * (0.5 + scale) / 4 * point * (-1 if bit(b, 34, e) else 1)


def iq3_xxs(b: bytes, e: int) -> float:
    words = word(b, 66 + 4 * (e // 32), 4)
    point = grid("IQ3_XXS")[b[2 + e // 4]][e % 4]
    return half(b, 0) * (0.5 + (words >> 28)) / 2 * point * sign(field(words, e % 32 // 8, 7), e % 8)


def iq3_s(b: bytes, e: int) -> float:
    point = grid("IQ3_S")[b[2 + e // 4] + 256 * bit(b, 66, e // 4)][e % 4]
    scale = 1 + 2 * field(b[106 + e // 64], e // 32 % 2, 4)
    return half(b, 0) * scale * point * (-1 if bit(b, 74, e) else 1)


def iq1_s(b: bytes, e: int) -> float:
    top = word(b, 34 + 2 * (e // 32), 2)
    point = grid("IQ1_S")[b[2 + e // 8] + 256 * field(top, e % 32 // 8, 3)][e % 8]
    return half(b, 0) * (2 * field(top, 4, 3) + 1) * (point + (-0.125 if top >> 15 else 0.125))


def iq1_m(b: bytes, e: int) -> float:
    words = [word(b, 48 + 2 * i, 2) for i in range(4)]
    d = half(sum(one >> 12 << (4 * i) for i, one in enumerate(words)).to_bytes(2, "little"), 0)
    top = field(b[32 + e // 16], e // 8 % 2, 4)
    point = grid("IQ1_S")[b[e // 8] + 256 * (top & 7)][e % 8]
    return d * (2 * field(words[e // 64], e % 64 // 16, 3) + 1) * (point + (-0.125 if top & 8 else 0.125))


_ALL: Sequence[Callable[[bytes, int], float]] = (
    *(q1_0, q2_0, q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k),
    *(iq1_s, iq1_m, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s, iq4_nl, iq4_xs, tq1_0, tq2_0, mxfp4, nvfp4),
)


def weight_at(name: str) -> Callable[[bytes, int], float]:
    """The function that reads a weight of a type's block."""
    return next(function for function in _ALL if function.__name__ == name.lower())
