"""What a spec means for a value: how long the streams are, which part a rank holds, and the way back."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._plan import Attn, Compressed, Grid, Leaf, Opaque, Ranges, Region, Rows, Seq, Spec
from ray_parallel.sequence.ranks._comm import Comm
from ray_parallel.sequence.ranks._exchange import gather
from ray_parallel.sequence.ranks._layout import Layout, Shares
from ray_parallel.sequence.running._compressed import cut_compressed


@dataclass(frozen=True, slots=True)
class Deferred:
    """A mask object on its way through a block; `kernel` names the function that applies it to whole sequences."""

    mask: Any
    kernel: str


def settled(region: Region, arguments: Mapping[str, Any]) -> Region:
    """The region for these arguments: grids of a single frame are cut by their lines.

    Args:
        region: as the plan has it.
        arguments: of its first block, whole.
    """
    grids: dict[Grid, Grid] = {}
    for name, spec in region.args.items():
        for value, leaf in _pairs(arguments.get(name), spec):
            if isinstance(leaf, Grid) and value.shape[leaf.dim] == 1 and len(leaf.inner) > 1:
                grids[leaf] = Grid(leaf.streams, leaf.inner[0], leaf.inner[1:])
    if not grids:
        return region
    args = {name: _mapped(spec, grids) for name, spec in region.args.items()}
    return replace(region, args=args, out=_mapped(region.out, grids))


def _mapped(spec: Spec, grids: Mapping[Grid, Grid]) -> Spec:
    if isinstance(spec, tuple):
        return tuple(_mapped(part, grids) for part in spec)
    return grids.get(spec, spec) if isinstance(spec, Grid) else spec


def layout_of(
    region: Region,
    arguments: Mapping[str, Any],
    *,
    ranks: int,
    rank: int,
    whole: Collection[str],
    shares: Shares | None = None,
) -> Layout:
    """The shards of a region's streams, from the arguments of its first block.

    Frames are kept together when rows come one a frame and there are at least as many frames as ranks: the rows are
    then cut directly.

    Raises:
        PlanError: the arguments do not fit their specs, or leave a stream of the region without a length.
    """
    pairs = [pair for name, spec in region.args.items() for pair in _pairs(arguments.get(name), spec)]
    lengths: dict[str, int] = {}
    units: dict[str, int] = {}
    for value, leaf in pairs:
        if isinstance(leaf, Grid):
            lengths.setdefault(leaf.streams[0], value.shape[leaf.dim] * _per_row(value, leaf))
            units[leaf.streams[0]] = _per_row(value, leaf)
        elif isinstance(leaf, Seq) and len(leaf.streams) == 1:
            known = lengths.get(leaf.streams[0], 0)
            lengths[leaf.streams[0]] = max(known, value.shape[leaf.dim])
    for value, leaf in pairs:
        if isinstance(leaf, Opaque):
            continue
        _known(leaf, leaf.streams, lengths)
        frames = _frames(value, leaf)
        tokens = lengths[leaf.streams[0]] if frames else 0
        if frames and ranks <= frames < tokens and tokens % frames == 0:
            units[leaf.streams[0]] = max(units.get(leaf.streams[0], 1), tokens // frames)
    for rule in region.attn.values():
        _known(rule, rule.streams(), lengths)
    return Layout.of(lengths, ranks=ranks, rank=rank, units=units, whole=whole, shares=shares)


def _known(what: Leaf | Attn, streams: Iterable[str], lengths: Mapping[str, int]) -> None:
    missing = [name for name in streams if name not in lengths]
    if missing:
        raise PlanError(f"{what}: no given argument shows how long stream {missing[0]!r} is")


def cut(value: Any, spec: Spec, layout: Layout) -> Any:
    """What this rank holds of a value; one that is already cut is unchanged.

    Raises:
        PlanError: the value does not have the form or the sizes of the spec.
    """
    if spec is None or value is None:
        return value
    if isinstance(spec, tuple):
        return type(value)(cut(part, leaf, layout) for part, leaf in _zip(value, spec))
    if isinstance(spec, Opaque):
        return value if isinstance(value, Tensor) else Deferred(value, spec.kernel)
    if not layout.cut_streams(spec.streams):
        return value
    if isinstance(spec, Ranges):
        return _cut_ranges(value, spec, layout)
    if isinstance(spec, Compressed) and not isinstance(value, Tensor):
        return cut_compressed(value, layout.held[spec.streams[0]][layout.rank], layout.full(spec.streams))
    if not isinstance(value, Tensor):
        raise PlanError(f"{spec}: expected a tensor, got {type(value).__name__}; describe it with a tuple of specs")
    if isinstance(spec, Seq):
        size = value.shape[spec.dim]
        if size == layout.full(spec.streams):
            return layout.take(value, spec.streams, spec.dim)
        if size in (1, layout.size(spec.streams)):
            return value
        raise _unfit(spec, value, size, layout)
    if isinstance(spec, Grid):
        return _cut_grid(value, spec, layout)
    return _cut_rows(value, spec, layout)


def put_together(value: Any, spec: Spec, layout: Layout, comm: Comm) -> Any:
    """The whole of what the ranks hold; a collective for each tensor that is cut."""
    if spec is None or value is None:
        return value
    if isinstance(spec, tuple):
        return type(value)(put_together(part, leaf, layout, comm) for part, leaf in _zip(value, spec))
    dim = spec.dim % value.ndim
    if isinstance(spec, Grid):
        per_row = _per_row(value, spec)
        if value.shape[dim] * per_row != layout.size(spec.streams):
            raise _unfit(spec, value, value.shape[dim] * per_row, layout)
        spans = {spec.streams[0]: tuple((a // per_row, b // per_row) for a, b in layout.held[spec.streams[0]])}
        owned = {spec.streams[0]: tuple((a // per_row, b // per_row) for a, b in layout.owned[spec.streams[0]])}
        rows = {spec.streams[0]: layout.full(spec.streams) // per_row}
        layout = Layout(lengths=rows, ranks=layout.ranks, rank=layout.rank, held=spans, owned=owned)
    elif value.shape[dim] != layout.size(spec.streams):
        raise _unfit(spec, value, value.shape[dim], layout)
    return gather(comm, layout, [value], spec.streams, dim)[0]


def _cut_ranges(value: Any, spec: Ranges, layout: Layout) -> Any:
    if isinstance(value, int):
        return sum(end - start for start, end in layout.ranges(0, value, spec.streams))
    found = []
    for entry in value:
        start, end, *rest = entry
        last = layout.full(spec.streams) if end is None else end
        found += [type(entry)((*span, *rest)) for span in layout.ranges(start or 0, last, spec.streams)]
    return type(value)(found)


def _cut_grid(value: Tensor, spec: Grid, layout: Layout) -> Tensor:
    per_row, full = _per_row(value, spec), layout.full(spec.streams)
    size = value.shape[spec.dim] * per_row
    if size == full:
        start, end = (place // per_row for place in layout.held[spec.streams[0]][layout.rank])
        return value.narrow(spec.dim, start, end - start).clone(memory_format=torch.contiguous_format)
    if size == layout.size(spec.streams):
        return value
    raise _unfit(spec, value, size, layout)


def _cut_rows(value: Tensor, spec: Rows | Compressed, layout: Layout) -> Tensor:
    """Rows unchanged when the rank holds whole groups, else one a token.

    Tokens that are no multiple of the rows fall into groups of the next larger size, the last one being shorter.
    """
    dim, ndim = (spec.dim, spec.ndim) if isinstance(spec, Rows) else (1, 0)
    rows, tokens = value.shape[dim] if not ndim or value.ndim == ndim else 1, layout.full(spec.streams)
    if rows == 1:
        return value
    if rows > tokens:
        raise _unfit(spec, value, rows, layout)
    per_row = -(-tokens // rows)
    places = layout.positions(spec.streams)
    if len(spec.streams) == 1 and tokens % rows == 0:
        start, end = layout.held[spec.streams[0]][layout.rank]
        if start % per_row == 0 and end % per_row == 0:
            return value.narrow(dim, start // per_row, (end - start) // per_row)
    return value.index_select(dim, (places // per_row).to(value.device))


def _pairs(value: Any, spec: Spec) -> Iterator[tuple[Any, Leaf]]:
    """Values beside their leaves, those that are None left out."""
    if value is None or spec is None:
        return
    if isinstance(spec, tuple):
        for part, leaf in _zip(value, spec):
            yield from _pairs(part, leaf)
    else:
        yield value, spec


def _zip(value: Any, spec: tuple[Spec, ...]) -> Iterator[tuple[Any, Spec]]:
    if not isinstance(value, tuple | list) or len(value) != len(spec):
        got = f"{len(value)} of them" if isinstance(value, tuple | list) else type(value).__name__
        raise PlanError(f"the plan describes {len(spec)} values together, got {got}; list every one, None for whole")
    return zip(value, spec, strict=True)


def _frames(value: Any, leaf: Leaf) -> int:
    """Rows that describe the frames of one stream; 0 when this is not about frames."""
    if isinstance(leaf, Rows | Compressed) and len(leaf.streams) == 1:
        if isinstance(leaf, Rows):
            return value.shape[leaf.dim] if not leaf.ndim or value.ndim == leaf.ndim else 0
        return value.shape[1] if isinstance(value, Tensor) else value.num_frames
    return 0


def _per_row(value: Tensor, spec: Grid) -> int:
    return math.prod(value.shape[dim] for dim in spec.inner)


def _unfit(spec: Seq | Rows | Grid | Compressed, value: Tensor, size: int, layout: Layout) -> PlanError:
    lengths = ", ".join(f"{name}: {layout.lengths[name]}" for name in spec.streams)
    held = layout.size(spec.streams)
    return PlanError(
        f"{spec}: {size} of {tuple(value.shape)} is neither the whole ({lengths}) nor the {held} tokens of this rank"
    )
