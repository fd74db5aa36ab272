"""What several ranks compute, held against one process: ranks as threads, and ranks as processes with gloo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gloo_processes import start
from sequence_tiny import Built, Case, cloned, difference, flat, sharing_copy
from torch import Tensor, nn

from ray_parallel.sequence import Comm, Entry, Kind, parallelize, run_threads
from ray_parallel.sequence.plans import plan_for

LIMIT = 1e-6
"""Largest difference allowed in fp32, relative to the largest value."""

GRID: tuple[tuple[Kind, int], ...] = (
    *(("ulysses", ranks) for ranks in (2, 3, 4)),
    *(("ring", ranks) for ranks in (2, 3, 4)),
    *(("all_gather", ranks) for ranks in (2, 3, 4)),
    ("usp", 4),
)
"""Every kind of attention with the rank counts it is shown on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How one case came out on several ranks.

    Attributes:
        difference: largest one of any rank from the single process, relative to the largest value.
        alike: every rank has the same bits.
    """

    difference: float
    alike: bool


def forward(model: nn.Module, arguments: dict[str, Any]) -> Tensor:
    """One call without gradients; neither model nor arguments are changed by it."""
    with torch.no_grad():
        return flat(model(**cloned(arguments)))


def on_rank(built: Built, entry: Entry, comm: Comm, kind: Kind) -> Tensor:
    """This rank's result of a call that all ranks make."""
    model, arguments = built
    ulysses = 2 if kind == "usp" else None
    with parallelize(model, entry.plan, comm, kind=kind, ulysses=ulysses, kernels=entry.kernels):
        return forward(model, arguments)


def threads(built: Built, entry: Entry, ranks: int, kind: Kind = "ulysses") -> list[Tensor]:
    """What each of `ranks` threads gets."""
    model, arguments = built
    return run_threads(ranks, lambda comm: on_rank((sharing_copy(model), arguments), entry, comm, kind))


def on_threads(built: Built, entry: Entry, ranks: int, kind: Kind = "ulysses") -> Parity:
    """Run a built case on one thread and on `ranks` of them."""
    reference = forward(*built)
    return compare(threads(built, entry, ranks, kind), reference)


def compare(results: Sequence[Tensor], reference: Tensor) -> Parity:
    """How far the results of the ranks are from the reference and from each other."""
    return Parity(
        difference=max(difference(result, reference) for result in results),
        alike=all(torch.equal(result, results[0]) for result in results),
    )


def on_processes(cases: Sequence[Case], folder: Path, timeout_s: float = 540) -> dict[tuple[str, Kind, int], Parity]:
    """Run cases over the whole `GRID` on processes with gloo, which are grouped for each number of ranks.

    Args:
        cases: what every process builds and runs.
        folder: where the processes meet and leave their results.
        timeout_s: they are killed when they are not done by then.

    Raises:
        TimeoutError: they were not.
        ProcessRaisedException: one of them failed; the others are ended.
    """
    processes = max(ranks for _, ranks in GRID)
    start(_process, processes, folder, list(cases), folder, timeout_s=timeout_s)
    saved = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]
    return {
        (case.name, kind, ranks): compare(
            [results[case.name, kind, ranks] for results in saved if (case.name, kind, ranks) in results],
            saved[0][case.name],
        )
        for case in cases
        for kind, ranks in GRID
    }


def _process(world: Comm, cases: list[Case], folder: Path) -> None:
    """One process: every case alone, and in every group that has the full number of ranks."""
    comms = {ranks: world.split(_groups(world.size, ranks)) for ranks in sorted({ranks for _, ranks in GRID})}
    results: dict[Any, Tensor] = {}
    for case in cases:
        built = case.build()
        results[case.name] = forward(*built)
        for kind, ranks in GRID:
            if comms[ranks].size == ranks:
                results[case.name, kind, ranks] = on_rank(built, plan_for(built[0]), comms[ranks], kind)
    torch.save(results, folder / f"rank{world.rank}.pt")


def _groups(processes: int, ranks: int) -> list[list[int]]:
    """All processes in groups of `ranks` neighbours, the last one being what is left."""
    return [list(range(first, min(first + ranks, processes))) for first in range(0, processes, ranks)]
