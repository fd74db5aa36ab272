"""Unequal shares: tokens and heads follow them, results do not, and every rank knows the same ones."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from seq_core_models import IMAGE, VIDEO, Attention, Image, Video, filled, image_inputs, video_inputs
from torch import Tensor, nn

from ray_parallel.sequence import (
    Kind,
    Mesh,
    PlanError,
    PreflightError,
    ThreadComm,
    Workload,
    forward_bytes,
    parallelize,
    run_threads,
)
from ray_parallel.sequence.ranks._layout import checked_shares, cuts
from ray_parallel.sequence.running._attention import head_spans

KINDS: tuple[Kind, ...] = get_args(Kind)
numbers = st.lists(st.floats(0.01, 1000, allow_nan=False), min_size=1, max_size=6)


@given(total=st.integers(0, 5000), unit=st.integers(1, 7), shares=numbers)
def test_cuts_follow_the_shares_by_the_largest_remainders(total: int, unit: int, shares: list[float]) -> None:
    ranks, units = len(shares), total
    spans = cuts(units * unit, ranks, unit, checked_shares(shares, ranks))
    sizes = [(end - start) / unit for start, end in spans]
    assert spans[0][0] == 0
    assert spans[-1][1] == units * unit
    assert all(here[1] == there[0] for here, there in itertools.pairwise(spans))
    assert all(size == int(size) for size in sizes)
    if units < ranks:
        assert spans == cuts(units * unit, ranks, unit)
        return
    assert min(sizes) >= 1
    wanted = [units * share / sum(shares) for share in shares]
    if all(want >= 1 for want in wanted):
        assert all(abs(size - want) < 1 + 1e-6 for size, want in zip(sizes, wanted, strict=True))


@given(total=st.integers(0, 500), ranks=st.integers(1, 6), share=st.floats(0.1, 10))
def test_equal_shares_are_no_shares(total: int, ranks: int, share: float) -> None:
    assert checked_shares([share] * ranks, ranks) is None
    even, parts = cuts(total, ranks), cuts(total, ranks, shares=(1 / ranks,) * ranks)
    assert even == parts
    sizes = [end - start for start, end in even]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1


@given(kv_heads=st.integers(1, 8), group=st.integers(1, 5), shares=numbers)
def test_a_rank_has_the_keys_of_its_queries(kv_heads: int, group: int, shares: list[float]) -> None:
    heads, ranks = kv_heads * group, len(shares)
    spans, kv_spans = head_spans(heads, kv_heads, ranks, checked_shares(shares, ranks))
    assert spans == cuts(heads, ranks, shares=checked_shares(shares, ranks))
    repeated = kv_spans[-1][1] != kv_heads
    for (start, end), (kv_start, kv_end) in zip(spans, kv_spans, strict=True):
        factor = 1 if repeated else group
        assert (start, end) == (kv_start * factor, kv_end * factor)


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ((70,), "1 shares for 2 ranks; give one share a rank"),
        ((70, 20, 10), "3 shares for 2 ranks"),
        ((70, 0), "are not positive numbers"),
        ((70, -1), "are not positive numbers"),
        ((70, math.nan), "are not positive numbers"),
        ((70, math.inf), "are not positive numbers"),
        ((True, 1), "are not positive numbers"),
        (("70", "30"), "are not positive numbers"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares: Any, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        run_threads(2, lambda comm: Mesh.of(comm, shares=shares))


class Grouped(Attention):
    """Four query heads for each key head, as grouped-query attention has them."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        few = q.shape[1] // 4
        return F.scaled_dot_product_attention(q, k[:, :few], v[:, :few], attn_mask=mask, enable_gqa=True)


def grouped() -> nn.Module:
    model = Video(heads=8, depth=2)
    for block in model.blocks:
        block.self_attn, block.cross_attn = Grouped(8), Grouped(8)
    return filled(model)


def grouped_inputs() -> dict[str, Any]:
    inputs = video_inputs(tokens=29, rows=29, batch=2)
    return {**inputs, "pe": inputs["pe"][..., :3]}


def run(build: Any, plan: Any, inputs: dict[str, Any], kind: Kind, shares: tuple[float, ...]) -> None:
    ulysses = 2 if kind == "usp" else None

    def rank(comm: ThreadComm) -> Tensor:
        model = build()
        with torch.no_grad(), parallelize(model, plan, comm, kind=kind, ulysses=ulysses, shares=shares):
            out: Tensor = model(**copy.deepcopy(inputs))
        return out

    with torch.no_grad():
        want = build()(**copy.deepcopy(inputs))
    outs = run_threads(len(shares), rank, timeout_s=20)
    for out in outs:
        torch.testing.assert_close(out, want, rtol=0, atol=1e-6 * want.abs().max().item())
        assert torch.equal(out, outs[0])


@pytest.mark.parametrize("shares", [(70, 30), (30, 70), (90, 10), (40, 30, 20, 10), (1, 100)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_uneven_shares_give_the_same_result(kind: Kind, shares: tuple[float, ...]) -> None:
    run(lambda: filled(Video()), VIDEO, video_inputs(tokens=31, rows=31, batch=2), kind, shares)
    run(lambda: filled(Image()), IMAGE, image_inputs(img=23, txt=5, control=True), kind, shares)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [(50, 50), (75, 25), (70, 30), (60, 25, 14, 1)], ids=str)
def test_grouped_keys_go_with_their_queries(kind: Kind, shares: tuple[float, ...]) -> None:
    run(grouped, VIDEO, grouped_inputs(), kind, shares)


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_fewer_tokens_than_ranks_stay_whole(tokens: int) -> None:
    run(lambda: filled(Video()), VIDEO, video_inputs(tokens=tokens), "ulysses", (80, 10, 10))


def test_ranks_that_were_given_other_shares_do_not_start() -> None:
    def rank(comm: ThreadComm) -> None:
        model = filled(Video())
        shares = (70, 30) if comm.rank else (60, 40)
        with torch.no_grad(), parallelize(model, VIDEO, comm, shares=shares):
            model(**video_inputs())

    with pytest.raises(PreflightError):
        run_threads(2, rank, timeout_s=20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [None, (70, 30), (60, 40), (40, 30, 20, 10)], ids=str)
@pytest.mark.parametrize("kv_heads", [8, 2])
def test_the_cost_model_counts_what_is_sent(kind: Kind, shares: tuple[float, ...] | None, kv_heads: int) -> None:
    """Two layers of self-attention; what is sent besides (the join, the comparison) is the same with and without."""
    ranks, ulysses = len(shares or (1, 1)), 2 if kind == "usp" else None
    build = grouped if kv_heads == 2 else lambda: filled(Video(heads=8, depth=2))
    inputs = grouped_inputs()

    def rank(comm: ThreadComm) -> int:
        mesh = Mesh.of(comm, kind, ulysses, shares)
        model = build()
        with torch.no_grad(), parallelize(model, VIDEO, mesh, preflight=False):
            model(**inputs)
        own = cuts(29, ranks, shares=mesh.shares)[comm.rank]
        return mesh.sent_bytes - (own[1] - own[0]) * 24 * 2 * 4 * (ranks - 1)  # but for the join at the end

    work = Workload(
        tokens=29, heads=8, head_dim=3, layers=2, forward_seconds=1.0, kv_heads=kv_heads, element_bytes=4, batch=2
    )
    counted = [forward_bytes(work, kind, ranks, ulysses=ulysses, rank=place, shares=shares) for place in range(ranks)]
    assert run_threads(ranks, rank, timeout_s=20) == counted
