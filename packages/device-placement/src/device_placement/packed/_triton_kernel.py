"""The kernel that decodes w3: one launch, every byte read once, every weight written once, no working memory."""

# The bodies of kernels are Triton's language, which Python's type checkers do not know.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

RUN = tl.constexpr(8)
"""Weights of a row: what a thread stores at once."""

ROWS = tl.constexpr(128)
"""Rows of a program; RUN * ROWS is a block of the format."""


@triton.jit
def decode_kernel(low, high, starts, rest, escapes, out, base, count, escape_count, RAGGED: tl.constexpr):
    """Decode one block a program.

    `low` is read as uint16 and `high` as uint8: the codes of one row. `count` is the number of weights; unless RAGGED
    it is a multiple of eight, so that a row is loaded and stored whole. Damaged bytes never make it read or write
    outside of the planes.
    """
    block = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)[:, None]
    col = tl.arange(0, RUN)[None, :]
    at = block * (ROWS * RUN) + row * RUN + col
    keep = at < count if RAGGED else block * ROWS + row < count // RUN
    two = tl.load(low + block * ROWS + row).to(tl.int32)
    one = tl.load(high + block * ROWS + row).to(tl.int32)
    code = ((two >> (2 * col)) & 3) | (((one >> col) & 1) << 2)
    escaped = (code == 7).to(tl.int32)
    of_row = tl.sum(escaped, axis=1)
    before_row = tl.cumsum(of_row, axis=0) - of_row
    rank = tl.load(starts + block) + before_row[:, None] + tl.cumsum(escaped, axis=1) - 1
    there = (escaped != 0) & (rank >= 0) & (rank < escape_count)
    exponent = tl.where(escaped != 0, tl.load(escapes + rank, mask=there, other=0).to(tl.int32), code + base)
    signed = tl.load(rest + at, mask=keep, other=0).to(tl.int32)
    bits = ((signed & 128) << 8) | (exponent << 7) | (signed & 127)
    tl.store(out + at, bits.to(tl.int16), mask=keep)
