"""Exact attention over cut sequences: Ulysses, ring, both at once, and all-gathered keys.

Ulysses (Jacobs et al. 2023, arXiv:2309.14509) exchanges tokens for heads; ring attention (Liu et al. 2023,
arXiv:2310.01889) passes keys and values around and merges in fp32; USP (Fang and Zhao 2024, arXiv:2405.07719) does the
first inside groups of neighbours and the second across them. Shards may be uneven, heads need not divide by the ranks,
and a rank may have no head at all.

Queries that every rank holds must come out with the same bits everywhere, or the ranks drift apart; they never take
the way of the ring, whose order of merging depends on the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.plan._kernels import Kernel
from ray_parallel.sequence.ranks._comm import Comm
from ray_parallel.sequence.ranks._exchange import from_heads, gather, to_heads
from ray_parallel.sequence.ranks._layout import Layout, Shares, Span, checked_shares, cuts
from ray_parallel.sequence.running._softmax import Part, partial_attention, without_drowned

Kind = Literal["ulysses", "ring", "usp", "all_gather"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One attention call as it came from a cut region.

    Attributes:
        q: [B, S, H, D], what this rank holds.
        k: [B, T, Hk, D]; Hk divides H.
        v: [B, T, Hk, Dv].
        q_streams: the streams that S runs over; none: whole on every rank.
        kv_streams: the streams that T runs over.
        mask: [B or 1, H or 1, S or 1, T or 1] over the whole sequences, or an object that only `kernel` understands.
        scale: of the scores; None: D ** -0.5.
        kernel: the attention that the model would have called.
        plain: the kernel is softmax attention and nothing else, so that it may be done in parts.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    q_streams: Sequence[str]
    kv_streams: Sequence[str]
    kernel: Kernel
    mask: Any = None
    scale: float | None = None
    plain: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The ranks as `ring` groups of `ulysses` neighbours.

    Attributes:
        kind: how attention is parallelised.
        world: all ranks.
        rows: this rank's group of neighbours, which exchange heads; None: it is alone in it.
        ring: the ranks at its place in the other groups; None: there are no others.
        shares: how much of tokens and heads each rank gets; None: equal parts.
    """

    kind: Kind
    world: Comm
    rows: Comm | None
    ring: Comm | None
    shares: Shares | None = None

    @classmethod
    def of(
        cls, comm: Comm, kind: Kind = "ulysses", ulysses: int | None = None, shares: Sequence[float] | None = None
    ) -> Mesh:
        """Arrange the ranks; every rank calls it, since groups are made here.

        Args:
            comm: all ranks.
            kind: "ulysses", "ring", "usp" or "all_gather".
            ulysses: for "usp", neighbours in a group; it divides the number of ranks.
            shares: how much each rank does, for unequal devices (70, 30); None: the same.

        Raises:
            PlanError: the kind is unknown, `ulysses` does not go with it or with the number of ranks, or the shares are
                not one positive number a rank.
        """
        if kind not in get_args(Kind):
            raise PlanError(f"attention kind {kind!r} is unknown; use {', '.join(map(repr, get_args(Kind)))}")
        if (ulysses is not None) != (kind == "usp"):
            raise PlanError(f"kind {kind!r} with ulysses={ulysses}: give the group size with 'usp', and only there")
        parts = checked_shares(shares, comm.size)
        if kind != "usp":
            return cls(kind=kind, world=comm, rows=comm if kind == "ulysses" else None, ring=comm, shares=parts)
        if ulysses is None or ulysses < 1 or comm.size % ulysses:
            raise PlanError(f"{comm.size} ranks are no multiple of ulysses={ulysses}; choose a divisor")
        rows = [list(range(start, start + ulysses)) for start in range(0, comm.size, ulysses)]
        columns = [list(range(start, comm.size, ulysses)) for start in range(ulysses)]
        return cls(kind=kind, world=comm, rows=comm.split(rows), ring=comm.split(columns), shares=parts)

    @property
    def sent_bytes(self) -> int:
        """Bytes that this rank has sent to others, over all of its groups."""
        ends = {id(end): end for end in (self.world, self.rows, self.ring) if end is not None}
        return sum(end.traffic.total_bytes for end in ends.values())


def attend(mesh: Mesh, layout: Layout, call: Call) -> Tensor:
    """Attention over the whole sequences, for the queries that this rank holds: [B, S, H, Dv]."""
    if not layout.cut_streams(call.kv_streams):
        return _local(layout, call)
    cut = layout.cut_streams(call.q_streams)
    if not call.plain or (cut and mesh.kind == "ulysses"):
        return _ulysses(mesh, layout, call)
    if not cut:
        return _whole_queries(mesh.world, layout, call)
    whole = [name for name in call.q_streams if name not in cut]
    if mesh.kind == "all_gather":
        k, v = gather(mesh.world, layout, (call.k, call.v), call.kv_streams, 1)
        call = replace(call, k=k, v=v)
        outs = [_local(layout, part) for part in _split_queries(layout, call, cut, whole)]
    else:
        ours, *shared = _split_queries(layout, call, cut, whole)
        outs = [_ring(mesh, layout, ours), *(_whole_queries(mesh.world, layout, part) for part in shared)]
    return _join_queries(layout, call.q_streams, cut, outs)


def _local(layout: Layout, call: Call) -> Tensor:
    """Keys and values are whole: nothing to say to the others."""
    mask = _rows(call.mask, layout.positions(call.q_streams)) if layout.cut_streams(call.q_streams) else call.mask
    q, k, v = (tensor.transpose(1, 2) for tensor in (call.q, call.k, call.v))
    return call.kernel(q, k, v, mask).transpose(1, 2)


def _ulysses(mesh: Mesh, layout: Layout, call: Call) -> Tensor:
    comm = mesh.world
    call, heads, kv_heads = _headed(call, mesh, comm.size)
    q_item, streams = (call.q, heads, call.q_streams), call.kv_streams
    q, k, v = to_heads(comm, layout, (q_item, (call.k, kv_heads, streams), (call.v, kv_heads, streams)))
    mine = heads[comm.rank]
    if mine[0] == mine[1]:
        out = q.new_empty(q.shape[0], 0, q.shape[2], v.shape[3])
    else:
        out = call.kernel(q, k, v, _of_heads(call.mask, mine, call.q.shape[2]))
    return from_heads(comm, layout, out, heads, call.q_streams)


def _ring(mesh: Mesh, layout: Layout, call: Call) -> Tensor:
    """Ulysses inside the rows (if there are any) and a ring across them; all queries are cut."""
    rows, ring = mesh.rows, mesh.ring
    assert ring is not None
    width = rows.size if rows else 1
    place = rows.rank if rows else 0
    groups = [layout.among(range(first, first + width), place) for first in range(0, layout.ranks, width)]
    group = groups[ring.rank]
    call, heads, kv_heads = _headed(call, mesh, width)
    k, v = (layout.contribution(tensor, call.kv_streams, 1) for tensor in (call.k, call.v))
    q, mine = call.q, (0, call.q.shape[2])
    if rows:
        own = replace(group, held=group.owned)
        streams = call.kv_streams
        q, k, v = to_heads(rows, own, ((q, heads, call.q_streams), (k, kv_heads, streams), (v, kv_heads, streams)))
        mine = heads[rows.rank]
    else:
        q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    mask = _of_heads(_rows(call.mask, group.positions(call.q_streams, owned=True)), mine, call.q.shape[2])
    q, mask = without_drowned(q, mask)
    places = [other.positions(call.kv_streams, owned=True) for other in groups]
    out = _around(ring, q, k, v, places, mask, call.scale)
    return from_heads(rows, group, out, heads, call.q_streams) if rows else out.transpose(1, 2)


def _around(
    ring: Comm, q: Tensor, k: Tensor, v: Tensor, places: Sequence[Tensor], mask: Tensor | None, scale: float | None
) -> Tensor:
    """Let keys and values travel once around; `places[r]` are the whole-sequence places of those of member r."""
    batch, heads, _, k_dim = k.shape
    v_dim = v.shape[3]
    flat = torch.cat([k.reshape(-1), v.reshape(-1)])
    total: Part | None = None
    for step in range(ring.size):
        source = (ring.rank - step) % ring.size
        tokens = len(places[source])
        k_flat, v_flat = torch.split(flat, [batch * heads * tokens * k_dim, batch * heads * tokens * v_dim])
        part = partial_attention(
            q,
            k_flat.view(batch, heads, tokens, k_dim),
            v_flat.view(batch, heads, tokens, v_dim),
            _columns(mask, places[source]),
            scale,
        )
        total = part if total is None else total.merge(part)
        if step < ring.size - 1:
            following = len(places[(source - 1) % ring.size])
            flat = ring.shift(flat, batch * heads * following * (k_dim + v_dim))
    assert total is not None
    return total.out.to(q.dtype)


def _whole_queries(comm: Comm, layout: Layout, call: Call) -> Tensor:
    """Every rank has these queries: each attends to the keys it owns, and all merge the parts in rank order."""
    k, v = (layout.contribution(tensor, call.kv_streams, 1).transpose(1, 2) for tensor in (call.k, call.v))
    own = layout.among([layout.rank], 0).positions(call.kv_streams, owned=True)
    q, mask = without_drowned(call.q.transpose(1, 2), call.mask)
    part = partial_attention(q, k, v, _columns(mask, own), call.scale)
    count = part.out.numel()
    flat = torch.cat([part.out.reshape(-1), part.lse.reshape(-1)])
    parts = (
        Part(other[:count].view(part.out.shape), other[count:].view(part.lse.shape))
        for other in comm.all_gather(flat, [flat.numel()] * comm.size)
    )
    return reduce(Part.merge, parts).out.to(call.q.dtype).transpose(1, 2)


def _headed(call: Call, mesh: Mesh, ranks: int) -> tuple[Call, tuple[Span, ...], tuple[Span, ...]]:
    """The heads of each rank; grouped keys are repeated when their groups would be torn apart."""
    heads, kv_heads, shares = call.q.shape[2], call.k.shape[2], shares_of_heads(mesh.shares, ranks)
    spans, kv_spans = head_spans(heads, kv_heads, ranks, shares)
    if kv_heads != kv_spans[-1][1]:
        k, v = (tensor.repeat_interleave(heads // kv_heads, 2) for tensor in (call.k, call.v))
        call = replace(call, k=k, v=v)
    return call, spans, kv_spans


def shares_of_heads(shares: Shares | None, neighbours: int) -> Shares | None:
    """How heads are shared out among `neighbours`: alike in every group, since keys travel between groups."""
    return None if shares is None else tuple(sum(shares[place::neighbours]) for place in range(neighbours))


def head_spans(
    heads: int, kv_heads: int, ranks: int, shares: Shares | None = None
) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """The heads of queries and of keys that each rank gets.

    Where the spans of grouped keys do not line up with those of their queries, the keys count as repeated to as many as
    there are queries.
    """
    spans, kv_spans = cuts(heads, ranks, shares=shares), cuts(kv_heads, ranks, shares=shares)
    group = heads // kv_heads
    lines_up = all(span == (start * group, end * group) for span, (start, end) in zip(spans, kv_spans, strict=True))
    return spans, kv_spans if lines_up else spans


def _split_queries(layout: Layout, call: Call, cut: Sequence[str], whole: Sequence[str]) -> list[Call]:
    """The call for the streams `cut`, and the one for the streams `whole` if there are any."""
    if not whole:
        return [call]
    held = dict(zip(call.q_streams, torch.split(call.q, [layout.size((s,)) for s in call.q_streams], 1), strict=True))
    ends = list(accumulate(layout.lengths[name] for name in call.q_streams))
    places = {n: torch.arange(end - layout.lengths[n], end) for n, end in zip(call.q_streams, ends, strict=True)}
    return [
        replace(
            call,
            q=torch.cat([held[name] for name in names], 1),
            q_streams=names,
            mask=_rows(call.mask, torch.cat([places[name] for name in names])),
        )
        for names in (cut, whole)
    ]


def _join_queries(layout: Layout, streams: Sequence[str], cut: Sequence[str], outs: Sequence[Tensor]) -> Tensor:
    """Undo `_split_queries`, on the results."""
    if len(outs) == 1:
        return outs[0]
    groups = (cut, [name for name in streams if name not in cut])
    pieces: dict[str, Tensor] = {}
    for names, out in zip(groups, outs, strict=True):
        pieces |= zip(names, torch.split(out, [layout.size((name,)) for name in names], 1), strict=True)
    return torch.cat([pieces[name] for name in streams], 1)


def _rows(mask: Any, places: Tensor) -> Any:
    """The rows of a mask that belong to the queries at `places`."""
    if mask is None or mask.shape[-2] == 1:
        return mask
    return mask.index_select(-2, places.to(mask.device))


def _columns(mask: Tensor | None, places: Tensor) -> Tensor | None:
    """The columns of a mask that belong to the keys at `places`."""
    return mask if mask is None or mask.shape[-1] == 1 else mask.index_select(-1, places.to(mask.device))


def _of_heads(mask: Any, heads: Span, count: int) -> Any:
    """The part of a mask that belongs to some of `count` heads."""
    if not isinstance(mask, Tensor) or mask.shape[1] != count or count == 1:
        return mask
    return mask[:, heads[0] : heads[1]]
