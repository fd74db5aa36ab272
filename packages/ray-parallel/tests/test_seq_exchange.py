"""Tokens for heads and back: nothing is lost, reordered or sent twice, however uneven the shards are."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ray_parallel.sequence import Layout, ThreadComm, run_threads
from ray_parallel.sequence.ranks._exchange import from_heads, gather, to_heads
from ray_parallel.sequence.ranks._layout import cuts

few = settings(deadline=None, max_examples=40)  # every example starts threads

STREAMS = ("txt", "img")
ranks = st.integers(1, 4)
lengths = st.fixed_dictionaries({"txt": st.integers(0, 5), "img": st.integers(1, 13)})
wholes = st.sets(st.sampled_from(STREAMS))


def numbered(*shape: int) -> Tensor:
    """Every element another number, so that one in a wrong place is seen."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def layout_for(comm: ThreadComm, tokens: dict[str, int], whole: set[str]) -> Layout:
    return Layout.of(tokens, ranks=comm.size, rank=comm.rank, whole=whole)


@few
@given(count=ranks, tokens=lengths, heads=st.integers(1, 6), whole=wholes, batch=st.integers(1, 2))
def test_every_rank_gets_its_heads_of_all_tokens_and_they_find_their_way_back(
    count: int, tokens: dict[str, int], heads: int, whole: set[str], batch: int
) -> None:
    full = numbered(batch, sum(tokens.values()), heads, 3)
    spans = cuts(heads, count)

    def rank(comm: ThreadComm) -> tuple[Tensor, bool]:
        layout = layout_for(comm, tokens, whole)
        held = layout.take(full, STREAMS, 1)
        (mine,) = to_heads(comm, layout, [(held, spans, STREAMS)])
        assert torch.equal(mine, full[:, :, slice(*spans[comm.rank])].transpose(1, 2))
        back = from_heads(comm, layout, mine, spans, STREAMS)
        return back, torch.equal(back, held)

    assert all(same for _, same in run_threads(count, rank))


@few
@given(count=ranks, tokens=lengths, queries=st.integers(1, 4), keys=st.integers(1, 4), whole=wholes)
def test_several_tensors_travel_in_one_exchange(
    count: int, tokens: dict[str, int], queries: int, keys: int, whole: set[str]
) -> None:
    total = sum(tokens.values())
    q, k, context = numbered(1, total, queries, 2), -numbered(1, total, keys, 4), numbered(1, 3, keys, 4)

    def rank(comm: ThreadComm) -> int:
        layout = layout_for(comm, tokens, whole)
        q_spans, k_spans = cuts(queries, count), cuts(keys, count)
        items: list[Any] = [
            (layout.take(q, STREAMS, 1), q_spans, STREAMS),
            (context, k_spans, ()),
            (layout.take(k, STREAMS, 1), k_spans, STREAMS),
        ]
        got = to_heads(comm, layout, items)
        for found, want, spans in zip(got, (q, context, k), (q_spans, k_spans, k_spans), strict=True):
            assert torch.equal(found, want[:, :, slice(*spans[comm.rank])].transpose(1, 2))
        if not layout.cut_streams(STREAMS):
            assert comm.traffic.total_bytes == 0
        return comm.traffic.calls["all_to_all"]

    assert max(run_threads(count, rank)) <= 1


@few
@given(count=ranks, tokens=lengths, whole=wholes, dim=st.integers(0, 2))
def test_what_is_gathered_is_the_whole(count: int, tokens: dict[str, int], whole: set[str], dim: int) -> None:
    total = sum(tokens.values())
    shape, other = [2, 3, 4], [5, 1, 2]
    shape[dim] = other[dim] = total
    full, more = numbered(*shape), -numbered(*other)

    def rank(comm: ThreadComm) -> bool:
        layout = layout_for(comm, tokens, whole)
        held = [layout.take(tensor, STREAMS, dim) for tensor in (full, more)]
        got = gather(comm, layout, held, STREAMS, dim)
        sent = sum(layout.contribution(tensor, STREAMS, dim).numel() for tensor in held) * 4 * (count - 1)
        assert comm.traffic.total_bytes == (sent if layout.cut_streams(STREAMS) else 0)
        return all(torch.equal(found, want) for found, want in zip(got, (full, more), strict=True))

    assert all(run_threads(count, rank))


@few
@given(count=st.integers(2, 4), tokens=st.integers(1, 9), heads=st.integers(1, 6))
def test_heads_of_whole_queries_come_together_on_every_rank(count: int, tokens: int, heads: int) -> None:
    full = numbered(1, tokens, heads, 2)
    spans = cuts(heads, count)

    def rank(comm: ThreadComm) -> bool:
        layout = layout_for(comm, {"img": 9}, set())
        mine = full[:, :, slice(*spans[comm.rank])].transpose(1, 2)
        return torch.equal(from_heads(comm, layout, mine, spans, ()), full)

    assert all(run_threads(count, rank))
