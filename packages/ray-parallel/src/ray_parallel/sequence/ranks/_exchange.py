"""Moving tensors between "all heads of some tokens" and "some heads of all tokens", and putting streams together.

Tensors are [B, S, H, D]. The order of the streams is restored inside the exchange, so whoever works on the other side
sees the sequence as a single device would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ray_parallel.sequence.ranks._comm import Comm
from ray_parallel.sequence.ranks._layout import Layout, Span

Streams = Sequence[str]
Item = tuple[Tensor, Sequence[Span], Streams]
"""A tensor [B, S, H, D], the heads that each rank gets, and the streams that S runs over (none: whole everywhere)."""


def to_heads(comm: Comm, layout: Layout, items: Sequence[Item]) -> list[Tensor]:
    """Give every rank some heads of all tokens, [B, h, S, D] each, in one all-to-all for all items.

    What every rank holds whole is not sent at all.
    """
    me = comm.rank
    moved = [item for item in items if layout.cut_streams(item[2])]
    sizes = [[_block(tensor, tokens, heads[me]) for tokens in layout.owned_sizes(s)] for tensor, heads, s in moved]
    parts: list[list[Tensor]] = [[] for _ in range(comm.size)]
    for tensor, heads, streams in moved:
        mine = layout.contribution(tensor, streams, 1)
        for rank, (start, end) in enumerate(heads):
            parts[rank].append(mine[:, :, start:end].reshape(-1))
    received = []
    if moved:
        flat = comm.all_to_all(
            [torch.cat(part) for part in parts], [sum(column) for column in zip(*sizes, strict=True)]
        )
        received = [torch.split(flat[rank], [row[rank] for row in sizes]) for rank in range(comm.size)]
    out, place = [], 0
    for tensor, heads, streams in items:
        if not layout.cut_streams(streams):
            out.append(tensor[:, :, slice(*heads[me])].transpose(1, 2))
            continue
        shape = (tensor.shape[0], -1, heads[me][1] - heads[me][0], tensor.shape[3])
        pieces = [
            received[rank][place].view(shape[0], tokens, *shape[2:])
            for rank, tokens in enumerate(layout.owned_sizes(streams))
        ]
        out.append(layout.join(pieces, streams, 1).transpose(1, 2))
        place += 1
    return out


def from_heads(comm: Comm, layout: Layout, out: Tensor, heads: Sequence[Span], streams: Streams) -> Tensor:
    """The way back: [B, h, S, D] of this rank's heads -> [B, S_held, H, D]."""
    batch, _, tokens, dim = out.shape
    widths = [end - start for start, end in heads]
    if not layout.cut_streams(streams):
        flat = comm.all_gather(out.reshape(-1), [batch * width * tokens * dim for width in widths])
        pieces = [part.view(batch, width, tokens, dim) for part, width in zip(flat, widths, strict=True)]
        return torch.cat(pieces, 1).transpose(1, 2)
    parts = [part.reshape(-1) for part in layout.apart(out.transpose(1, 2), streams, 1)]
    held = layout.size(streams)
    flat = comm.all_to_all(parts, [batch * held * width * dim for width in widths])
    return torch.cat([part.view(batch, held, width, dim) for part, width in zip(flat, widths, strict=True)], 2)


def gather(comm: Comm, layout: Layout, tensors: Sequence[Tensor], streams: Streams, dim: int) -> list[Tensor]:
    """The whole tensors, from what each rank holds of them, in one all-gather; all ranks get the same bits."""
    if not layout.cut_streams(streams):
        return list(tensors)
    mine = [layout.contribution(tensor, streams, dim) for tensor in tensors]
    tokens = layout.owned_sizes(streams)
    rows = [math.prod(tensor.shape[:dim]) * math.prod(tensor.shape[dim + 1 :]) for tensor in tensors]
    flat = comm.all_gather(torch.cat([part.reshape(-1) for part in mine]), [count * sum(rows) for count in tokens])
    split = [torch.split(part, [count * row for row in rows]) for part, count in zip(flat, tokens, strict=True)]
    return [
        layout.join(
            [split[rank][i].view(*t.shape[:dim], count, *t.shape[dim + 1 :]) for rank, count in enumerate(tokens)],
            streams,
            dim,
        )
        for i, t in enumerate(tensors)
    ]


def _block(tensor: Tensor, tokens: int, heads: Span) -> int:
    return tensor.shape[0] * tokens * (heads[1] - heads[0]) * tensor.shape[3]
