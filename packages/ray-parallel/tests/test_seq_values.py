"""What specs mean for values: rows, ranges, grids and compressed rows, cut anywhere, are those of the rank's tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seq_probes import PerFrame
from torch import Tensor

from ray_parallel.sequence import (
    Attn,
    Compressed,
    Grid,
    Layout,
    Opaque,
    PlanError,
    Ranges,
    Region,
    Rows,
    Seq,
    run_threads,
)
from ray_parallel.sequence.running._values import Deferred, cut, layout_of, put_together, settled

unhurried = settings(deadline=None)  # other work on the machine is no failure


def views(ranks: int, lengths: dict[str, int], **more: Any) -> list[Layout]:
    return [Layout.of(lengths, ranks=ranks, rank=rank, **more) for rank in range(ranks)]


@unhurried
@given(ranks=st.integers(1, 5), frames=st.integers(1, 7), per_frame=st.integers(1, 6))
def test_compressed_rows_are_the_rows_of_the_tokens_wherever_they_are_cut(
    ranks: int, frames: int, per_frame: int
) -> None:
    rows = PerFrame(torch.randn(2, frames, 6), per_frame)
    table = torch.randn(3, 2)
    for layout in views(ranks, {"v": frames * per_frame}):
        part = cut(rows, Compressed("v"), layout)
        assert isinstance(part, PerFrame)
        assert part.data.shape[1] <= frames
        assert torch.equal(part.expand(), layout.take(rows.expand(), ("v",), 1))
        for indices in (slice(None), slice(0, 2)):
            wholes = rows.expand_for_computation(table, 2, indices)
            for got, whole in zip(part.expand_for_computation(table, 2, indices), wholes, strict=True):
                assert torch.equal(got, layout.take(whole, ("v",), 1))


def test_one_compressed_row_for_all_tokens_stays_and_a_wrong_count_raises() -> None:
    layout = views(2, {"v": 12})[0]
    rows = PerFrame(torch.randn(1, 1, 6), 1)
    assert cut(rows, Compressed("v"), layout) is rows
    with pytest.raises(PlanError, match="3 frames of 5 tokens do not describe 12"):
        cut(PerFrame(torch.randn(1, 3, 6), 5), Compressed("v"), layout)


def test_a_tensor_in_place_of_compressed_rows_is_cut_as_rows() -> None:
    rows = torch.randn(1, 12, 6)
    for layout in views(2, {"v": 12}):
        assert torch.equal(cut(rows, Compressed("v"), layout), layout.take(rows, ("v",), 1))


@unhurried
@given(ranks=st.integers(1, 5), tokens=st.integers(1, 24), rows=st.integers(1, 24))
def test_rows_are_those_of_the_tokens(ranks: int, tokens: int, rows: int) -> None:
    value = torch.randn(1, rows, 3)
    if 1 < tokens < rows and ranks > 1 and tokens >= ranks:
        with pytest.raises(PlanError, match="neither the whole"):
            cut(value, Rows("v"), views(ranks, {"v": tokens})[0])
        return
    if rows > tokens:
        return
    whole = value.repeat_interleave(-(-tokens // rows), 1)[:, :tokens]
    for layout in views(ranks, {"v": tokens}):
        part = cut(value, Rows("v"), layout)
        local = layout.size(("v",))
        expanded = part.repeat_interleave(-(-local // part.shape[1]), 1)[:, :local]
        assert torch.equal(expanded, layout.take(whole, ("v",), 1))


def test_rows_of_another_number_of_dimensions_are_left_alone() -> None:
    layout = views(2, {"v": 6})[0]
    value = torch.randn(1, 6, 4)
    assert cut(value, Rows("v", ndim=4), layout) is value


@unhurried
@given(ranks=st.integers(1, 4), data=st.data())
def test_ranges_and_counts_are_the_same_tokens(ranks: int, data: st.DataObject) -> None:
    lengths = {"txt": data.draw(st.integers(1, 9)), "img": data.draw(st.integers(1, 9))}
    total = sum(lengths.values())
    middle = data.draw(st.integers(0, total))
    marks = torch.tensor([0] * middle + [1] * (total - middle))
    joint = ("txt", "img")
    for layout in views(ranks, lengths):
        mine = layout.take(marks, joint, 0)
        spans = cut([(0, middle, "a"), (middle, None, "b")], Ranges(joint), layout)
        painted = torch.full_like(mine, -1)
        for start, end, tag in spans:
            painted[start : mine.shape[0] if end is None else end] = "ab".index(tag)
        assert torch.equal(painted, mine)
        assert cut(middle, Ranges(joint), layout) == int((mine == 0).sum())


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_a_grid_is_cut_by_frames_and_put_together(ranks: int) -> None:
    value = torch.randn(2, 5, 3, 2, 4)
    region = Region(blocks="b", args={"x": Grid("v"), "r": Seq("v")}, out=Grid("v"), attn={"": Attn("v", "v")})

    def rank(comm: Any) -> Tensor:
        layout = layout_of(region, {"x": value}, ranks=comm.size, rank=comm.rank, whole=())
        part = cut(value, Grid("v"), layout)
        assert part.shape[1] * 6 == layout.size(("v",))
        assert torch.equal(part.flatten(1, 3), layout.take(value.flatten(1, 3), ("v",), 1))
        assert cut(part, Grid("v"), layout) is part
        part += 0
        out: Tensor = put_together(part, Grid("v"), layout, comm)
        return out

    assert all(torch.equal(out, value) for out in run_threads(ranks, rank))


def test_grids_of_one_frame_are_cut_between_lines_wherever_they_stand() -> None:
    """In a tuple of arguments and of results as well; a grid of several frames stays as the plan has it."""
    image, video = Grid("img"), Grid("ref")
    region = Region(
        blocks="b", args={"x": (image, None), "y": video}, out=(image, video), attn={"": Attn("img", "img")}
    )
    given = {"x": [torch.zeros(2, 1, 3, 5, 4), torch.zeros(1)], "y": torch.zeros(2, 2, 3, 5, 4)}
    found = settled(region, given)
    lines = Grid("img", 2, (3,))
    assert found.args == {"x": (lines, None), "y": video}
    assert found.out == (lines, video)
    assert settled(region, {"x": [torch.zeros(2, 4, 3, 5, 4), None], "y": given["y"]}) is region
    layout = layout_of(found, given, ranks=2, rank=0, whole=())
    assert layout.lengths == {"img": 15, "ref": 30}
    assert layout.held["img"] == ((0, 10), (10, 15))
    assert cut(given["x"], found.args["x"], layout)[0].shape == (2, 1, 2, 5, 4)


def test_a_part_may_be_written_to() -> None:
    value = torch.zeros(1, 4, 2, 2, 3)
    for layout in views(2, {"v": 16}, units={"v": 4}):
        cut(value, Grid("v"), layout).add_(1)
    assert not value.any()


def test_nested_values_and_those_that_stay() -> None:
    layout = views(2, {"v": 6})[1]
    pe, flag = torch.randn(1, 6, 2), object()
    part, same = cut([pe, flag], (Seq("v"), None), layout)
    assert torch.equal(part, pe[:, 3:])
    assert same is flag
    once = torch.randn(1, 1, 2)
    assert cut(once, Seq("v"), layout) is once
    assert cut(None, Seq("v"), layout) is None
    mask = torch.ones(2, 2)
    assert cut(mask, Opaque("k"), layout) is mask
    assert cut("mask", Opaque("k"), layout) == Deferred("mask", "k")


@pytest.mark.parametrize(
    ("value", "spec", "reason"),
    [
        (torch.randn(1, 5, 2), Seq("v"), "5 of .* is neither the whole .v: 6. nor the 3"),
        (torch.randn(1, 2, 2, 2, 1), Grid("v"), "8 of"),
        ([torch.randn(1, 6)], (Seq("v"), None), "describes 2 values together, got 1 of them"),
        (torch.randn(1, 6), (Seq("v"), None), "got Tensor"),
        ("text", Seq("v"), "expected a tensor, got str"),
    ],
)
def test_values_that_do_not_fit(value: Any, spec: Any, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        cut(value, spec, views(2, {"v": 6})[0])


@pytest.mark.parametrize(("value", "spec"), [(torch.randn(1, 5, 2), Seq("v")), (torch.randn(1, 2, 2, 1, 1), Grid("v"))])
def test_results_that_do_not_fit_are_not_sent(value: Tensor, spec: Any) -> None:
    layout = views(1, {"v": 6})[0]
    with pytest.raises(PlanError, match="neither the whole"):
        run_threads(1, lambda comm: put_together(value, spec, layout, comm))


REGION = Region(
    blocks="b",
    args={"x": Seq("v"), "e": Rows("v"), "c": Compressed("v"), "pe": Seq(("t", "v"))},
    out=Seq("v"),
    attn={"": Attn("v", "v")},
)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ({"e": torch.ones(1, 4, 1)}, [6, 6]),
        ({"e": torch.ones(1, 3, 1)}, [8, 4]),
        ({"c": PerFrame(torch.ones(1, 3, 1), 4)}, [8, 4]),
        ({"c": torch.ones(1, 3, 1)}, [8, 4]),
        ({"e": torch.ones(1, 1, 1)}, [6, 6]),
        ({"e": torch.ones(1, 12, 1)}, [6, 6]),
        ({"e": torch.ones(1, 5, 1)}, [6, 6]),
    ],
)
def test_frames_stay_together_where_that_is_possible(given: dict[str, Any], sizes: list[int]) -> None:
    layout = layout_of(REGION, {"x": torch.ones(1, 12, 1), **given}, ranks=2, rank=0, whole=())
    assert layout.held_sizes(("v",)) == sizes


def test_a_stream_that_nothing_measures() -> None:
    with pytest.raises(PlanError, match="how long stream 't' is"):
        layout_of(REGION, {"x": torch.ones(1, 12, 1), "pe": torch.ones(1, 15, 1)}, ranks=2, rank=0, whole=())
