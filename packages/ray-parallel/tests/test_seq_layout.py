"""Laws of layouts: a cut and a join are the identity for any lengths, ranks and units."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_parallel.sequence import Layout, PlanError
from ray_parallel.sequence.ranks._layout import cuts

STREAMS = ("txt", "img", "ref")

unhurried = settings(deadline=None)  # other work on the machine is no failure


@st.composite
def layouts(draw: st.DrawFn) -> list[Layout]:
    """The views of all ranks."""
    ranks = draw(st.integers(1, 6))
    units = {name: draw(st.integers(1, 3)) for name in STREAMS}
    lengths = {name: units[name] * draw(st.integers(0, 9)) for name in STREAMS}
    whole = draw(st.sets(st.sampled_from(STREAMS)))
    return [Layout.of(lengths, ranks=ranks, rank=rank, units=units, whole=whole) for rank in range(ranks)]


streams_of = st.permutations(STREAMS).flatmap(lambda order: st.integers(1, 3).map(lambda n: tuple(order[:n])))


@unhurried
@given(total=st.integers(0, 200), ranks=st.integers(1, 9), unit=st.integers(1, 5))
def test_cuts_are_a_fair_partition(total: int, ranks: int, unit: int) -> None:
    spans = cuts(total * unit, ranks, unit)
    assert len(spans) == ranks
    assert [place for start, end in spans for place in range(start, end)] == list(range(total * unit))
    sizes = [(end - start) // unit for start, end in spans]
    assert max(sizes) - min(sizes) <= 1
    assert all((end - start) % unit == 0 for start, end in spans)


def test_a_unit_that_does_not_divide_is_refused() -> None:
    with pytest.raises(PlanError, match="units of 4: 2 are left over"):
        cuts(10, 2, 4)


@unhurried
@given(views=layouts(), streams=streams_of, dim=st.integers(0, 2))
def test_contributions_join_to_the_whole(views: list[Layout], streams: tuple[str, ...], dim: int) -> None:
    shape = [2, 3, 2]
    shape[dim] = views[0].full(streams)
    whole = torch.randn(shape)
    held = [view.take(whole, streams, dim) for view in views]
    parts = [view.contribution(part, streams, dim) for view, part in zip(views, held, strict=True)]
    assert [part.shape[dim] for part in held] == [view.size(streams) for view in views] == views[0].held_sizes(streams)
    assert [part.shape[dim] for part in parts] == views[0].owned_sizes(streams)
    for view in views:
        assert torch.equal(view.join(parts, streams, dim), whole)


@unhurried
@given(views=layouts(), streams=streams_of)
def test_apart_gives_what_each_rank_takes(views: list[Layout], streams: tuple[str, ...]) -> None:
    whole = torch.arange(views[0].full(streams))
    apart = views[0].apart(whole, streams, 0)
    for view, part in zip(views, apart, strict=True):
        assert torch.equal(part, view.take(whole, streams, 0))
        assert torch.equal(part, view.positions(streams))


@unhurried
@given(views=layouts(), streams=streams_of)
def test_nobody_holds_less_than_a_unit_of_a_stream_that_has_tokens(views: list[Layout], streams: Any) -> None:
    for view in views:
        for name in streams:
            assert (view.size((name,)) > 0) == (view.lengths[name] > 0)
            if view.is_whole(name):
                assert view.size((name,)) == view.lengths[name]


@unhurried
@given(views=layouts(), streams=streams_of, data=st.data())
def test_ranges_are_the_same_tokens(views: list[Layout], streams: tuple[str, ...], data: st.DataObject) -> None:
    full = views[0].full(streams)
    start = data.draw(st.integers(0, full))
    end = data.draw(st.integers(start, full))
    for view in views:
        mine = view.positions(streams)
        wanted = torch.cat([mine[a:b] for a, b in view.ranges(start, end, streams)] or [mine[:0]])
        assert wanted.tolist() == [place for place in mine.tolist() if start <= place < end]


@unhurried
@given(views=layouts(), streams=streams_of, data=st.data())
def test_neighbours_form_a_layout_of_their_own(
    views: list[Layout], streams: tuple[str, ...], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(views) - 1))
    last = data.draw(st.integers(first, len(views) - 1))
    group = range(first, last + 1)
    among = views[0].among(group, 0)
    whole = torch.arange(among.full(streams))
    owned = [views[rank].contribution(views[rank].take(whole, streams, 0), streams, 0) for rank in group]
    assert torch.equal(among.join(owned, streams, 0), among.positions(streams, owned=True))


def test_what_is_taken_may_be_written_to() -> None:
    whole = torch.zeros(1, 8, 2)
    for rank in range(2):
        Layout.of({"v": 8}, ranks=2, rank=rank).take(whole, ("v",), 1).add_(1)
    assert not whole.any()


def test_one_rank_holds_everything_whole() -> None:
    layout = Layout.of({"v": 8}, ranks=1, rank=0)
    assert layout.is_whole("v")
    assert layout.cut_streams(("v",)) == ()
