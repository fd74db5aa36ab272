"""The one Triton kernel, and how a decoding function reads its block.

A decoding function says what the weight at place `i` of run `g` of the block at `p` is. A run is eight weights, what a
thread stores at once in 16-bit types, so that all that depends on `p` and `g` alone (scales, shifts, sign patterns) is
computed once for eight weights. The kernel is the same for every type: each program decodes some runs, each weight is
computed in float32 and stored once, rounded once. Every byte of the blocks is read from memory once and every weight
written once, which is all the traffic there has to be.
"""

# The bodies of kernels are Triton's language, which Python's type checkers do not know.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

RUN = tl.constexpr(8)
"""Weights of a run; every block type has a multiple of it."""

ROWS = tl.constexpr(128)
"""Runs of a program: one for each thread of four warps."""


@triton.jit
def dequantize_kernel(
    blocks,
    out,
    table,
    count,
    TYPE_SIZE: tl.constexpr,
    RUNS: tl.constexpr,
    DECODE: tl.constexpr,
):
    """Decode `count` runs, RUNS of them to a block of TYPE_SIZE bytes, ROWS of them a program."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = tl.arange(0, ROWS)[:, None]
    i = tl.arange(0, RUN)[None, :]
    mask = first + row < count
    # A program starts with a whole block, so that the places after it are small numbers.
    p = blocks + first // RUNS * TYPE_SIZE + row // RUNS * TYPE_SIZE
    weight = DECODE(p, row % RUNS, i, table, mask)
    tl.store(out + first * RUN + row * RUN + i, weight.to(out.dtype.element_ty), mask=mask)


@triton.jit
def byte(p, mask):
    """The byte at `p` as int32."""
    return tl.load(p, mask=mask, other=0).to(tl.int32)


@triton.jit
def signed_byte(p, mask):
    """The byte at `p`, a two's complement number, as int32."""
    return ((byte(p, mask)) ^ 128) - 128


@triton.jit
def short(p, mask):
    """The two bytes at `p`, lowest first, as int32."""
    return byte(p, mask) | (byte(p + 1, mask) << 8)


@triton.jit
def half(p, mask):
    """The float16 at `p`, which need not be aligned, as float32."""
    return short(p, mask).to(tl.uint16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def nibble(value, high):
    """The low, or where `high` is 1 the high four bits of a byte."""
    return (value >> (4 * high)) & 15
