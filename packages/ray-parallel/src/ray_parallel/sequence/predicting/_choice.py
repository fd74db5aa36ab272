"""How to use some ranks for one sampling run: CFG split first, tokens with the rest, and not at all without a gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ray_parallel._errors import ParallelError
from ray_parallel.sequence.plan._errors import PlanError
from ray_parallel.sequence.predicting._cost import Link, Workload, busiest_share, calls_of, forward_bytes, joining_bytes
from ray_parallel.sequence.running._attention import Kind

LEAST_SPEEDUP = 1.15
"""Below this a parallel run is not worth a second device: the prediction itself may be off by that much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One way to use the ranks, and what a step of it would take. Predicted, not measured.

    Attributes:
        cfg: groups that share out the conditions.
        sequence: ranks that share the tokens of one forward.
        kind: how their attention is parallelised.
        ulysses: neighbours of a group, for kind "usp".
        sent_bytes: what the busiest rank sends in a step.
        compute_seconds: arithmetic of the busiest rank in a step.
        transfer_seconds: sending in a step; nothing is assumed to overlap.
        alone_seconds: the step on one device.
    """

    cfg: int
    sequence: int
    kind: Kind
    ulysses: int | None
    sent_bytes: int
    compute_seconds: float
    transfer_seconds: float
    alone_seconds: float

    @property
    def ranks(self) -> int:
        """All ranks together."""
        return self.cfg * self.sequence

    @property
    def seconds(self) -> float:
        """A step."""
        return self.compute_seconds + self.transfer_seconds

    @property
    def speedup(self) -> float:
        """How many times faster than one device."""
        return self.alone_seconds / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers and names, the derived ones included."""
        return asdict(self) | {"ranks": self.ranks, "seconds": self.seconds, "speedup": self.speedup}

    def __str__(self) -> str:
        """The prediction as one sentence."""
        return (
            f"{self.cfg} x {self.sequence} ranks (conditions x tokens, {self.kind}): predicted {self.speedup:.2f}x, "
            f"{self.seconds:.3g} s a step instead of {self.alone_seconds:.3g} s, {self.transfer_seconds:.3g} s of them "
            f"for {self.sent_bytes / 1e9:.3g} GB sent"
        )


def predict(
    work: Workload, link: Link, *, cfg: int = 1, sequence: int = 1, kind: Kind = "ulysses", ulysses: int | None = None
) -> Prediction:
    """Predict one way to use `cfg * sequence` ranks.

    What a CFG split exchanges is left out: one latent a step, against the tokens of every layer.

    Args:
        work: the model and the size of what it samples.
        link: between the ranks.
        cfg: groups that share out the conditions.
        sequence: ranks that share the tokens of one forward.
        kind: how their attention is parallelised.
        ulysses: neighbours of a group, for kind "usp".

    Raises:
        PlanError: there is not one rank, or `ulysses` does not go with the kind or the ranks.

    Examples:
        >>> wan = Workload(tokens=32760, heads=40, head_dim=128, layers=40, forward_seconds=12.0)
        >>> print(predict(wan, Link(), sequence=2))
        1 x 2 ranks (conditions x tokens, ulysses): predicted 1.45x, 16.5 s a step instead of 24 s, ...
    """
    if min(cfg, sequence) < 1:
        raise PlanError(f"{cfg} x {sequence} ranks cannot be; there is at least one for the conditions and the tokens")
    forwards = -(-work.conditions // cfg)
    sent, transfer = 0, 0.0
    if sequence > 1:
        sent = forwards * (forward_bytes(work, kind, sequence, ulysses=ulysses) + joining_bytes(work, sequence))
        calls = forwards * calls_of(work, kind, sequence, ulysses=ulysses)
        transfer = sent / link.bytes_per_second + calls * link.latency_seconds
    share = busiest_share(work, kind, sequence, ulysses=ulysses)
    return Prediction(
        cfg=cfg,
        sequence=sequence,
        kind=kind,
        ulysses=ulysses,
        sent_bytes=sent,
        compute_seconds=forwards * work.forward_seconds * share,
        transfer_seconds=transfer,
        alone_seconds=work.conditions * work.forward_seconds,
    )


def auto(work: Workload, ranks: int, link: Link, *, least_speedup: float = LEAST_SPEEDUP) -> Prediction:
    """Choose how to use `ranks` ranks.

    Conditions are shared out as far as they and the ranks divide, since that costs nothing; the tokens are cut for the
    ranks that are left, in the kind with the best prediction.

    Raises:
        PlanError: there is not one rank.
        NotWorthItError: even that is predicted to gain less than `least_speedup`; it holds the prediction.

    Examples:
        >>> wan = Workload(tokens=32760, heads=40, head_dim=128, layers=40, forward_seconds=12.0)
        >>> [(p.cfg, p.sequence, round(p.speedup, 2)) for p in (auto(wan, ranks, Link()) for ranks in (2, 4))]
        [(2, 1, 2.0), (2, 2, 2.9)]
    """
    if ranks < 1:
        raise PlanError(f"{ranks} ranks cannot be; give at least one")
    cfg = max(groups for groups in range(1, min(ranks, work.conditions) + 1) if ranks % groups == 0)
    ways = [
        predict(work, link, cfg=cfg, sequence=ranks // cfg, kind=kind, ulysses=ulysses)
        for kind, ulysses in _kinds(ranks // cfg)
    ]
    best = max(ways, key=lambda way: way.speedup)
    if best.speedup < least_speedup:
        raise NotWorthItError(best, least_speedup)
    return best


def _kinds(ranks: int) -> Iterator[tuple[Kind, int | None]]:
    """Every kind, the one to prefer first."""
    yield "ulysses", None
    if ranks > 1:
        yield "all_gather", None
        yield "ring", None
        for neighbours in range(2, ranks):
            if ranks % neighbours == 0:
                yield "usp", neighbours


class NotWorthItError(ParallelError):
    """More ranks are predicted to gain too little.

    Attributes:
        prediction: of the best way to use them.
        least_speedup: what was asked for.
    """

    def __init__(self, prediction: Prediction, least_speedup: float) -> None:
        self.prediction = prediction
        self.least_speedup = least_speedup
        super().__init__(
            f"{prediction.ranks} ranks gain too little, {least_speedup:g}x is asked for. {prediction}. "
            "Use fewer ranks, a faster link or a larger picture, or name the split to use it all the same"
        )
