"""Which tensors are worth packing, by shape and dtype alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEAST_WEIGHTS = 1 << 14
"""Smaller tensors stay dense: to decode one costs more than its bytes."""


def is_worth_packing(shape: Sequence[int], dtype: str | None, size_bytes: int) -> bool:
    """Whether a tensor is a dense bf16 matrix, or one of more dimensions, that is large enough.

    Args:
        shape: of the weights.
        dtype: as torch names it.
        size_bytes: stored bytes; fewer than dense ones have means that it is packed already.
    """
    count = math.prod(shape)
    return dtype == "bfloat16" and len(shape) >= 2 and count >= LEAST_WEIGHTS and size_bytes == 2 * count
