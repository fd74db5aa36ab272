"""The cost model: its bytes are what the ranks really send, its prediction follows, and too small a gain is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from seq_core_models import random
from torch import Tensor, nn

from ray_parallel.sequence import (
    Attn,
    Kind,
    Link,
    NotWorthItError,
    Plan,
    PlanError,
    Region,
    Seq,
    ThreadComm,
    Workload,
    auto,
    forward_bytes,
    joining_bytes,
    parallelize,
    predict,
    run_threads,
)
from ray_parallel.sequence.predicting._cost import busiest_share, calls_of

WAN = Workload(tokens=32760, heads=40, head_dim=128, layers=40, forward_seconds=12.0)
"""Wan 14B at 832 x 480 with 81 frames: 21 x 30 x 52 tokens."""

KINDS: tuple[tuple[Kind, int, int | None], ...] = (
    ("ulysses", 2, None),
    ("ulysses", 3, None),
    ("ring", 2, None),
    ("ring", 3, None),
    ("all_gather", 3, None),
    ("usp", 4, 2),
    ("usp", 4, 4),
    ("usp", 4, 1),
    ("usp", 6, 2),
    ("usp", 6, 3),
)


class Block(nn.Module):
    """Attention and nothing else."""

    def __init__(self, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads

    def forward(self, x: Tensor) -> Tensor:
        q = x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        k = q[:, : self.kv_heads]
        grouped = self.heads != self.kv_heads
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=grouped).transpose(1, 2).flatten(2)


class Model(nn.Module):
    """Some blocks."""

    def __init__(self, work: Workload) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(work.heads, work.kv_heads or work.heads) for _ in range(work.layers))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


PLAN = Plan(regions=[Region(blocks="blocks", args={"x": Seq("v")}, out=Seq("v"), attn={"": Attn("v", "v")})])


def sent(work: Workload, kind: Kind, ranks: int, ulysses: int | None) -> list[tuple[int, int]]:
    """Bytes and collective calls of every rank in one forward."""
    x = random(work.batch, work.tokens, work.width).to({4: torch.float32, 8: torch.float64}[work.element_bytes])

    def rank(comm: ThreadComm) -> tuple[int, int]:
        with torch.no_grad(), parallelize(Model(work), PLAN, comm, kind=kind, ulysses=ulysses) as parallel:
            parallel.model(x)
            mesh = parallel.mesh
            ends = {id(end): end.traffic for end in (mesh.world, mesh.rows, mesh.ring) if end is not None}
        busy = [traffic for traffic in ends.values() if traffic.calls.total()]
        return sum(t.total_bytes for t in busy), sum(t.calls.total() for t in busy)

    return run_threads(ranks, rank)


@pytest.mark.parametrize(("kind", "ranks", "ulysses"), KINDS)
@pytest.mark.parametrize(
    "work",
    [
        Workload(tokens=24, heads=12, head_dim=2, layers=2, forward_seconds=1, element_bytes=4),
        Workload(tokens=13, heads=5, head_dim=2, layers=1, forward_seconds=1, element_bytes=4),
        Workload(tokens=7, heads=2, head_dim=4, layers=3, forward_seconds=1, element_bytes=8, batch=2),
        Workload(tokens=13, heads=6, kv_heads=2, head_dim=2, layers=2, forward_seconds=1, element_bytes=4),
    ],
    ids=["even", "uneven", "fewer heads than ranks", "grouped keys"],
)
def test_the_bytes_are_those_that_are_sent(work: Workload, kind: Kind, ranks: int, ulysses: int | None) -> None:
    measured = sent(work, kind, ranks, ulysses)
    assert [count for count, _ in measured] == [
        forward_bytes(work, kind, ranks, ulysses=ulysses, rank=rank) + joining_bytes(work, ranks, rank=rank)
        for rank in range(ranks)
    ]
    assert forward_bytes(work, kind, ranks, ulysses=ulysses) == max(
        forward_bytes(work, kind, ranks, ulysses=ulysses, rank=rank) for rank in range(ranks)
    )


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(8, 40),
    heads=st.integers(1, 9),
    ranks=st.integers(1, 4),
    layers=st.integers(1, 2),
    kind=st.sampled_from(["ulysses", "ring", "all_gather"]),
)
def test_the_bytes_are_those_that_are_sent_whatever_the_sizes(
    tokens: int, heads: int, ranks: int, layers: int, kind: Kind
) -> None:
    work = Workload(tokens=tokens, heads=heads, head_dim=2, layers=layers, forward_seconds=1, element_bytes=4)
    expected = [
        forward_bytes(work, kind, ranks, rank=rank) + joining_bytes(work, ranks, rank=rank) for rank in range(ranks)
    ]
    assert [count for count, _ in sent(work, kind, ranks, None)] == expected


@given(size=st.integers(1, 50), ranks=st.sampled_from([1, 2, 4, 8]), neighbours=st.sampled_from([1, 2, 4, 8]))
def test_what_divides_follows_the_formula(size: int, ranks: int, neighbours: int) -> None:
    n, d, p = 8 * size, 16, ranks
    work = Workload(tokens=n, heads=8, head_dim=2, layers=1, forward_seconds=1, element_bytes=1)
    assert forward_bytes(work, "ulysses", p) * p**2 == 4 * n * d * (p - 1)
    assert forward_bytes(work, "ring", p) * p == 2 * n * d * (p - 1)
    assert forward_bytes(work, "all_gather", p) * p == 2 * n * d * (p - 1)
    if p % neighbours == 0:
        u, r = neighbours, p // neighbours
        usp = forward_bytes(work, "usp", p, ulysses=u)
        assert usp * p * u == 4 * n * d * (u - 1) + 2 * n * d * (r - 1) * u


def test_wan_14b_sends_13_gigabytes_a_forward_to_one_neighbour() -> None:
    assert forward_bytes(WAN, "ulysses", 2) == 4 * 32760 * 5120 // 4 * 2 * 40 == 13_418_496_000
    assert joining_bytes(WAN, 2) == 16380 * 5120 * 2


@pytest.mark.parametrize(("kind", "ranks", "ulysses"), [way for way in KINDS if way[2] != 1])
def test_the_calls_are_those_that_are_made(kind: Kind, ranks: int, ulysses: int | None) -> None:
    work = Workload(tokens=24, heads=12, head_dim=2, layers=3, forward_seconds=1, element_bytes=4)
    comparison = 1  # `agree` is a call that sends no tensor, and is not counted as traffic
    assert {calls for _, calls in sent(work, kind, ranks, ulysses)} == {
        calls_of(work, kind, ranks, ulysses=ulysses) - comparison
    }


def test_one_rank_sends_and_calls_nothing() -> None:
    for kind in ("ulysses", "ring", "all_gather"):
        assert forward_bytes(WAN, kind, 1) == calls_of(WAN, kind, 1) == joining_bytes(WAN, 1) == 0


def test_a_prediction_adds_up() -> None:
    link = Link(bytes_per_second=10e9, latency_seconds=20e-6)
    way = predict(WAN, link, sequence=4)
    assert way.alone_seconds == 24.0
    assert way.compute_seconds == pytest.approx(6.0)
    assert way.sent_bytes == 2 * (forward_bytes(WAN, "ulysses", 4) + joining_bytes(WAN, 4))
    assert way.transfer_seconds == pytest.approx(way.sent_bytes / 10e9 + 2 * 82 * 20e-6)
    assert way.seconds == way.compute_seconds + way.transfer_seconds
    assert way.speedup == pytest.approx(24.0 / way.seconds)
    assert "predicted" in str(way)


@pytest.mark.parametrize(("conditions", "cfg", "forwards"), [(2, 1, 2), (2, 2, 1), (3, 2, 2), (1, 1, 1)])
def test_conditions_are_shared_out(conditions: int, cfg: int, forwards: int) -> None:
    way = predict(replace(WAN, conditions=conditions), Link(), cfg=cfg)
    assert way.compute_seconds == 12.0 * forwards
    assert way.sent_bytes == way.transfer_seconds == 0
    assert way.speedup == conditions / forwards


def test_a_prediction_is_plain_data() -> None:
    data: dict[str, Any] = json.loads(json.dumps(predict(WAN, Link(), cfg=2, sequence=2).as_dict()))
    assert data["ranks"] == 4
    assert data["kind"] == "ulysses"
    assert data["speedup"] > 1


@given(tokens=st.integers(16, 10_000), heads=st.integers(1, 48), ranks=st.integers(1, 16))
def test_no_rank_does_less_than_its_share_or_more_than_all(tokens: int, heads: int, ranks: int) -> None:
    work = replace(WAN, tokens=tokens, heads=heads)
    for kind in ("ulysses", "ring", "all_gather"):
        share = busiest_share(work, kind, ranks)
        assert 1 / ranks - 1e-9 <= share <= 1
        if tokens % ranks == heads % ranks == 0:
            assert share == pytest.approx(1 / ranks)


def test_few_heads_leave_ulysses_ranks_idle() -> None:
    few = replace(WAN, heads=4, head_dim=1280)
    assert busiest_share(few, "ulysses", 8) > 1.3 * busiest_share(few, "ring", 8)


@pytest.mark.parametrize(
    ("ranks", "conditions", "cfg", "sequence"),
    [(1, 1, 1, 1), (2, 2, 2, 1), (4, 2, 2, 2), (6, 2, 2, 3), (3, 2, 1, 3), (3, 3, 3, 1), (4, 3, 2, 2), (2, 1, 1, 2)],
)
def test_auto_splits_conditions_first(ranks: int, conditions: int, cfg: int, sequence: int) -> None:
    way = auto(replace(WAN, conditions=conditions), ranks, Link(), least_speedup=1.0)
    assert (way.cfg, way.sequence) == (cfg, sequence)


def test_auto_takes_the_kind_with_the_best_prediction() -> None:
    assert auto(WAN, 8, Link()).kind == "ulysses"
    assert auto(replace(WAN, kv_heads=1, conditions=1), 3, Link(bytes_per_second=1e10)).kind == "all_gather"
    ring = predict(WAN, Link(), cfg=2, sequence=4, kind="ring")
    usp = predict(WAN, Link(), cfg=2, sequence=4, kind="usp", ulysses=2)
    assert auto(WAN, 8, Link()).speedup > max(ring.speedup, usp.speedup)


def test_too_small_a_gain_is_refused_with_the_prediction() -> None:
    small = Workload(tokens=4096, heads=24, head_dim=128, layers=57, forward_seconds=0.1, conditions=1)
    with pytest.raises(NotWorthItError, match=r"2 ranks gain too little, 1\.15x is asked for") as caught:
        auto(small, 2, Link(bytes_per_second=1e9))
    assert caught.value.prediction.speedup < caught.value.least_speedup == 1.15
    assert auto(small, 2, Link(bytes_per_second=100e9)).speedup > 1.5


@pytest.mark.parametrize(
    ("kind", "ranks", "ulysses"), [("ulysses", 2, 2), ("usp", 4, None), ("usp", 4, 3), ("usp", 4, 0), ("ring", 2, 1)]
)
def test_groups_that_cannot_be_are_refused(kind: Kind, ranks: int, ulysses: int | None) -> None:
    with pytest.raises(PlanError, match="needs a divisor"):
        predict(WAN, Link(), sequence=ranks, kind=kind, ulysses=ulysses)


@pytest.mark.parametrize(("cfg", "sequence"), [(0, 1), (1, 0), (-2, 2), (2, -1)])
def test_fewer_than_one_rank_is_refused(cfg: int, sequence: int) -> None:
    with pytest.raises(PlanError, match="at least one"):
        predict(WAN, Link(), cfg=cfg, sequence=sequence)


@pytest.mark.parametrize("ranks", [0, -4])
def test_auto_needs_a_rank(ranks: int) -> None:
    with pytest.raises(PlanError, match="at least one"):
        auto(WAN, ranks, Link())


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"forward_seconds": 0.0}, {"kv_heads": 3}, {"batch": -1}])
def test_sizes_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="is no model"):
        replace(WAN, **wrong)


@pytest.mark.parametrize("wrong", [{"bytes_per_second": 0.0}, {"latency_seconds": -1.0}])
def test_links_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match="cannot be"):
        Link(**wrong)
