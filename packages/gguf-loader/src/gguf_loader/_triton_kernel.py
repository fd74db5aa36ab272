"""The one Triton kernel, and how a decoding function reads its block.

A decoding function says what the weight at place `e` of the block at `p` is. The kernel is the same for every type:
each program decodes some blocks, each weight is computed in float32 and stored once, rounded once. Every byte of the
blocks is read from memory once and every weight written once, which is all the traffic there has to be.
"""

# The bodies of kernels are Triton's language, which Python's type checkers do not know.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

WEIGHTS_PER_PROGRAM = 1024


@triton.jit
def dequantize_kernel(
    blocks,
    out,
    table,
    count,
    TYPE_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
    DECODE: tl.constexpr,
):
    """Decode `count` blocks of TYPE_SIZE bytes into BLOCK_SIZE weights each, BLOCKS of them a program."""
    index = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)[:, None]
    mask = index < count
    e = tl.arange(0, BLOCK_SIZE)[None, :]
    weight = DECODE(blocks + index * TYPE_SIZE, e, table, mask)
    tl.store(out + index * BLOCK_SIZE + e, weight.to(out.dtype.element_ty), mask=mask)


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
