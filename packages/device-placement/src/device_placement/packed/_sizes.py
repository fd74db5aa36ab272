"""Which tensors are worth packing, by shape and dtype alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEAST_WEIGHTS = 1 << 14
"""Smaller tensors stay dense: to decode one costs more than its bytes."""


def is_worth_packing(
    shape: Sequence[int], dtype: str | None, size_bytes: int, *, least_weights: int = LEAST_WEIGHTS
) -> bool:
    """Whether a tensor is a dense bf16 matrix, or one of more dimensions, that is large enough.

    Args:
        shape: of the weights.
        dtype: as torch names it.
        size_bytes: stored bytes; fewer than dense ones have means that it is packed already.
        least_weights: smaller tensors are not worth it.
    """
    count = math.prod(shape)
    return dtype == "bfloat16" and len(shape) >= 2 and count >= least_weights and size_bytes == 2 * count
