"""What a dequantisation of one block type consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from ._lanes import Lanes

Scales: TypeAlias = Callable[[Tensor, Lanes], tuple[Tensor, ...]]
"""(blocks, lanes) -> scale tables: float32, first dimension a multiple of the blocks."""

Weights: TypeAlias = Callable[..., None]
"""(blocks, weights, lanes, *scale tables of those blocks): writes the weights, computed in float32 and rounded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """Dequantisation of one block type in two phases.

    Scales are few and their arithmetic is many small operations, so they are made for many blocks at a time; the
    weights follow in chunks that stay in the processor's cache.

    Attributes:
        scales: makes the tables of (blocks, type_size) uint8 blocks.
        weights: writes (blocks, block_size) weights, float32 on the CPU, with the tables of those blocks.
    """

    scales: Scales
    weights: Weights
