"""New memory for what the host put in place of streamed tensors.

The memory of a replaced tensor is unchanged for as long as anybody holds the old object, an alias of it or a state
dict: its values are not ours to change. So the newcomer gets a buffer that nobody knows, and the share of its unit is
cut into pieces around it; the other tensors stay where they are, since somebody may also hold aliases of them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from torch import Tensor

from device_placement._errors import DevicesFullError
from device_placement.engine._streamed_unit import Share, StreamedUnit
from device_placement.machine._allocation import AllocationRefused
from device_placement.tensors._flat_buffers import Spot
from device_placement.tensors._stored import Kept

Allocate = Callable[[str, int], Tensor]
"""allocate(device name, bytes) -> a flat uint8 buffer there; raises AllocationRefused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """A stretch of a share whose tensors all stay, or are all newcomers; bytes from the start of the share."""

    start: int
    end: int
    tensors: tuple[Kept, ...]
    fresh: bool


def rehouse(unit: StreamedUnit, strays: Sequence[Kept], allocate: Allocate) -> None:
    """Let the tensors that now stand in place of `strays` move in.

    Nothing is changed unless everything can be.

    Args:
        unit: whose tensors they are; its slots are to be filled again afterwards.
        strays: streamed tensors whose entries refer to something else now.
        allocate: gives memory on a donor.

    Raises:
        HandleInvalidatedError: an entry is gone, or refers to something that cannot live there.
        DevicesFullError: a donor has no room for the newcomers.
    """
    found = {id(kept): kept.found() for kept in strays}
    shares: list[Share] = []
    kept: list[tuple[int, Kept]] = []
    moves: list[tuple[Kept, Tensor, tuple[Spot, ...]]] = []
    for index, share in enumerate(unit.shares):
        tensors = [each for place, each in unit.kept if place == index]
        for piece in _pieces(tensors, share.buffer.numel(), found.keys()):
            buffer = _memory(unit, share, piece, allocate)
            for each in piece.tensors:
                kept.append((len(shares), each))
                moves.append((each, buffer, tuple(replace(s, offset=s.offset - piece.start) for s in each.spots)))
            shares.append(Share(share.donor, buffer, share.slot_offset + piece.start))
    for each, buffer, spots in moves:
        if id(each) in found:
            each.copy_to(buffer, spots, found[id(each)])

    def switch() -> None:
        for each, buffer, spots in moves:
            each.live_in(buffer, spots, move=id(each) in found)
        unit.divide(tuple(shares), tuple(kept))

    try:
        switch()
    except BaseException:  # an interruption in between would leave shares and tensors that contradict each other
        switch()
        raise


def _memory(unit: StreamedUnit, share: Share, piece: _Piece, allocate: Allocate) -> Tensor:
    if not piece.fresh:
        return share.buffer[piece.start : piece.end]
    size_bytes = piece.end - piece.start
    try:
        return allocate(share.donor, size_bytes)
    except AllocationRefused as refusal:
        raise DevicesFullError(
            f"what replaced streamed tensors of {unit.path!r}",
            size_bytes,
            {share.donor: refusal.answer},
            f"free memory of {share.donor}, or remove() the placement before replacing tensors",
        ) from refusal


def _pieces(tensors: Sequence[Kept], size_bytes: int, strays: Container[int]) -> Iterator[_Piece]:
    """Cut a share between tensors that stay and newcomers; tensors without bytes go with their neighbours."""
    in_order = sorted(tensors, key=lambda kept: kept.spots[0].offset)
    starts = [0, *(kept.spots[0].offset for kept in in_order[1:]), size_bytes]
    ranges = list(pairwise(starts))
    fresh = False
    labelled = []
    for kept, (start, end) in zip(in_order, ranges, strict=True):
        fresh = id(kept) in strays if end > start else fresh
        labelled.append((kept, start, end, fresh))
    for is_fresh, group in groupby(labelled, key=lambda each: each[3]):
        members = list(group)
        yield _Piece(
            start=members[0][1], end=members[-1][2], tensors=tuple(each[0] for each in members), fresh=is_fresh
        )
