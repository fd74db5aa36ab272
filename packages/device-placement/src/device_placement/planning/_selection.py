"""Which units give up bytes, and in what proportion: what the freely choosing policies share, and `interleave`.

A policy sees the units that may be streamed, in the order of the model, and the bytes that must leave the compute
device. It returns the tensors to stream, unit by unit. At least the bytes asked leave, and at most one unit more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device_placement._plan import UnitKind

MINOR_FRACTION = 1 / 4
"""A unit that computes less than this share of the average keeps its bytes while others have some to give.

Its copy would take a slot's turn, and the next unit's copy could then only hide behind its short forward.
"""


LEAF_WEIGHT = 1 / 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Movable:
    """One unit as a policy sees it.

    Attributes:
        sizes: bytes of each tensor.
        weight: share of the compute time of a pass, in any measure.
    """

    sizes: tuple[int, ...]
    weight: float

    @property
    def size_bytes(self) -> int:
        """Bytes of the unit."""
        return sum(self.sizes)


Selection = list[frozenset[int]]
"""For each unit, the indices of the tensors to stream."""

Selector = Callable[[int], Selection]
"""A policy prepared for one model: from bytes that must leave to tensors that do."""


def assumed_weight(kind: UnitKind, *, is_embedding: bool = False) -> float:
    """Share of the compute time that a unit is taken to have where nobody measured it: every block the same.

    Their bytes say less than one would think: UNets give every block about the same work whatever its size, and the
    large blocks of two-stream transformers send half of their weights past a few text tokens. Counted in
    floating-point operations, equal blocks predict Flux, SDXL, SD 1.5, SD 3.5 and Wan better than bytes or their
    square root. Single layers beside blocks are mostly projections of one vector, and a lookup table computes
    nothing.

    >>> assumed_weight("block"), assumed_weight("leaf"), assumed_weight("leaf", is_embedding=True)
    (1.0, 0.125, 0.0)
    """
    if is_embedding or kind == "rest":
        return 0.0
    return 1.0 if kind == "block" else LEAF_WEIGHT


def tiers(units: Sequence[Movable]) -> tuple[list[int], list[int]]:
    """Indices of the units that stream first, and of those that stream only when the first have nothing left."""
    movable = [index for index, unit in enumerate(units) if unit.size_bytes]
    total_bytes = sum(units[index].size_bytes for index in movable)
    # By bytes, so that the average is that of the blocks, however many small layers stand around them.
    average = sum(units[index].weight * units[index].size_bytes for index in movable) / max(1, total_bytes)
    major = [index for index in movable if units[index].weight > 0 and units[index].weight >= average * MINOR_FRACTION]
    first = set(major)
    return major, [index for index in movable if index not in first]


def interleaved(units: Sequence[Movable]) -> Selector:
    """Policy `interleave`: whole units, spread so that each copy hides behind as much compute as the next."""

    def select(need_bytes: int) -> Selection:
        streamed: set[int] = set()
        for tier in tiers(units):
            missing = need_bytes - sum(units[index].size_bytes for index in streamed)
            if missing > 0:
                streamed |= _spread(units, tier, missing)
        return [
            frozenset(range(len(unit.sizes))) if index in streamed else frozenset() for index, unit in enumerate(units)
        ]

    return select


def _spread(units: Sequence[Movable], tier: Sequence[int], missing: int) -> set[int]:
    """Error diffusion over compute time; then, while bytes are missing, the unit furthest from any streamed one."""
    total_weight = sum(units[index].weight for index in tier)
    streamed: list[int] = []
    streamed_bytes = 0
    elapsed = 0.0
    for index in tier:
        elapsed += units[index].weight
        size = units[index].size_bytes
        if total_weight and streamed_bytes + size / 2 <= missing * elapsed / total_weight:
            streamed.append(index)
            streamed_bytes += size
    chosen = set(streamed)
    gaps = (
        {index: _cyclic_gap(index, streamed, len(units)) for index in tier if index not in chosen}
        if (streamed_bytes < missing)
        else {}
    )
    while streamed_bytes < missing and gaps:
        index = max(gaps, key=lambda candidate: gaps[candidate])
        del gaps[index]
        chosen.add(index)
        streamed_bytes += units[index].size_bytes
        for other, gap in gaps.items():
            gaps[other] = min(gap, _cyclic_gap(other, (index,), len(units)))
    return chosen


def _cyclic_gap(index: int, others: Sequence[int], count: int) -> int:
    """Units between `index` and the nearest of `others`, the end of a pass being next to the start of the following."""
    return min((min(abs(index - other), count - abs(index - other)) for other in others), default=count)
