"""What a parallel forward sends and how long it takes: a prediction in numbers, without a device.

A rank sends, a layer and in elements, with N tokens of width D on P ranks that divide both (USP has P = U x R):

    Ulysses              4 N D (P - 1) / P^2
    ring, all-gather     2 N D (P - 1) / P
    USP                  4 N D (U - 1) / (P U)  +  2 N D (R - 1) / P

What is counted here is exact for uneven shards and heads, too: it is what `Comm.traffic` shows afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.ranks._layout import Shares, checked_shares, cuts
from ray_parallel.sequence.running._attention import Kind, head_spans, shares_of_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What lies between two ranks.

    Attributes:
        bytes_per_second: of one rank's sending, while all ranks send.
        latency_seconds: of one collective call.
    """

    bytes_per_second: float = 6e9
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.bytes_per_second <= 0 or self.latency_seconds < 0:
            raise PlanError(f"{self} cannot be; bandwidth is positive and latency not negative: measure both")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One model and the size of what it samples.

    Attributes:
        tokens: of the sequence that is cut, N.
        heads: attention heads; the width is D = heads * head_dim.
        head_dim: features of a head.
        layers: self-attention calls of one forward.
        forward_seconds: one forward of one condition on one device, measured.
        conditions: forwards of a step: 2 with CFG, 1 without.
        kv_heads: heads of keys and values; None: as many as `heads`.
        element_bytes: of one number on the way: 2 for bf16.
        batch: sequences that one forward runs together.

    Examples:
        >>> wan = Workload(tokens=32760, heads=40, head_dim=128, layers=40, forward_seconds=12.0)
        >>> round(forward_bytes(wan, "ulysses", 2) / 1e9, 1)  # Wan 14B, 832 x 480, 81 frames
        13.4
    """

    tokens: int
    heads: int
    head_dim: int
    layers: int
    forward_seconds: float
    conditions: int = 2
    kv_heads: int | None = None
    element_bytes: int = 2
    batch: int = 1

    def __post_init__(self) -> None:
        sizes = (self.tokens, self.heads, self.head_dim, self.layers, self.conditions, self.element_bytes, self.batch)
        if min(sizes) < 1 or self.forward_seconds <= 0 or self.heads % (self.kv_heads or self.heads):
            raise PlanError(f"{self} is no model: sizes and seconds are positive, and kv_heads divides heads")

    @property
    def width(self) -> int:
        """Features of a token, D."""
        return self.heads * self.head_dim


def forward_bytes(
    work: Workload,
    kind: Kind,
    ranks: int,
    *,
    ulysses: int | None = None,
    rank: int | None = None,
    shares: Sequence[float] | None = None,
) -> int:
    """Bytes that a rank sends for the attention of one forward.

    Args:
        work: the model.
        kind: how attention is parallelised.
        ranks: that share one forward.
        ulysses: neighbours of a group, for "usp".
        rank: the one asked about; None: the one that sends most.
        shares: how much of tokens and heads each rank gets; None: equal parts.

    Raises:
        PlanError: `ulysses` does not go with the kind or the ranks, or the shares do not go with the ranks.
    """
    neighbours = _neighbours(kind, ranks, ulysses)
    parts = checked_shares(shares, ranks)
    asked = range(ranks) if rank is None else (rank,)
    elements = max(_layer_elements(work, kind, ranks, neighbours, place, parts) for place in asked)
    return elements * work.head_dim * work.layers * work.batch * work.element_bytes


def joining_bytes(work: Workload, ranks: int, *, rank: int = 0, shares: Sequence[float] | None = None) -> int:
    """Bytes that a rank sends to put the tokens together once, after the last block."""
    own = _sizes(work.tokens, ranks, checked_shares(shares, ranks))[rank]
    return own * work.width * (ranks - 1) * work.batch * work.element_bytes


def calls_of(work: Workload, kind: Kind, ranks: int, *, ulysses: int | None = None) -> int:
    """Collective calls of one forward: those of the attention, the one at the end and the comparison before."""
    neighbours = _neighbours(kind, ranks, ulysses)
    if ranks == 1:
        return 0
    exchanges = 2 if kind in ("ulysses", "usp") and neighbours > 1 else 0
    rounds = 1 if kind == "all_gather" else 0 if kind == "ulysses" else ranks // neighbours - 1
    return (exchanges + rounds) * work.layers + 2


def _neighbours(kind: Kind, ranks: int, ulysses: int | None) -> int:
    """Ranks that exchange heads."""
    if (ulysses is not None) != (kind == "usp") or (ulysses is not None and (ulysses < 1 or ranks % ulysses)):
        raise PlanError(f"kind {kind!r} with ulysses={ulysses} on {ranks} ranks: 'usp' needs a divisor, others none")
    return ulysses or (ranks if kind == "ulysses" else 1)


def _layer_elements(work: Workload, kind: Kind, ranks: int, neighbours: int, rank: int, shares: Shares | None) -> int:
    """What one rank sends for one attention call, counted in heads of one token."""
    kv_heads = work.kv_heads or work.heads
    sizes, tokens = _sizes(work.tokens, ranks, shares), work.tokens
    own = sizes[rank]
    if kind == "all_gather":
        return 2 * own * kv_heads * (ranks - 1)
    group, place = divmod(rank, neighbours)
    groups = [sum(sizes[first : first + neighbours]) for first in range(0, ranks, neighbours)]
    spans, kv_spans = head_spans(work.heads, kv_heads, neighbours, shares_of_heads(shares, neighbours))
    (start, end), (kv_start, kv_end), kv_heads = spans[place], kv_spans[place], kv_spans[-1][1]
    heads, kept = end - start, kv_end - kv_start
    there = own * (work.heads - heads) + 2 * own * (kv_heads - kept)
    back = (groups[group] - own) * heads
    around = 2 * kept * (tokens - groups[(group + 1) % len(groups)]) if len(groups) > 1 else 0
    return there + back + around


def _sizes(total: int, ranks: int, shares: Shares | None = None) -> Sequence[int]:
    return [end - start for start, end in cuts(total, ranks, shares=shares)]


def busiest_share(work: Workload, kind: Kind, ranks: int, *, ulysses: int | None = None) -> float:
    """The part of a forward's arithmetic that the busiest rank does; 1 / ranks when everything divides.

    Linear layers follow the tokens; under Ulysses the attention follows the heads. The attention is N / (N + 6 D) of
    all, for blocks with four projections and a feed-forward of four times the width.
    """
    neighbours = _neighbours(kind, ranks, ulysses)
    by_tokens = max(_sizes(work.tokens, ranks)) / work.tokens
    by_heads = max(_sizes(work.heads, neighbours)) / work.heads * neighbours / ranks
    attention = work.tokens / (work.tokens + 6 * work.width)
    return (1 - attention) * by_tokens + attention * max(by_heads, by_tokens if neighbours == 1 else 0.0)
