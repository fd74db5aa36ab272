"""What several ranks compute, held against one process: ranks as threads, and ranks as processes with gloo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sequence_tiny import Built, Case, cloned, difference, flat, sharing_copy
from torch import Tensor, nn

from ray_parallel.sequence import Comm, Entry, GroupComm, Kind, parallelize, run_threads
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


def on_threads(built: Built, entry: Entry, ranks: int, kind: Kind = "ulysses") -> Parity:
    """Run a built case on `ranks` threads and on one."""
    model, arguments = built
    reference = forward(model, arguments)
    results = run_threads(ranks, lambda comm: on_rank((sharing_copy(model), arguments), entry, comm, kind))
    return compare(results, reference)


def compare(results: Sequence[Tensor], reference: Tensor) -> Parity:
    """How far the results of the ranks are from the reference and from each other."""
    return Parity(
        difference=max(difference(result, reference) for result in results),
        alike=all(torch.equal(result, results[0]) for result in results),
    )


def on_processes(
    cases: Sequence[Case], ranks: int, kinds: Sequence[Kind], folder: Path, timeout_s: float = 240
) -> dict[tuple[str, Kind], Parity]:
    """Run cases on `ranks` processes with gloo; `folder` is where they meet and leave their results.

    Raises:
        TimeoutError: they are not done in time; they are killed.
        ProcessRaisedException: one of them failed; the others are ended.
    """
    arguments = (ranks, list(cases), list(kinds), folder, timeout_s)
    context = mp.spawn(_process, arguments, ranks, join=False)  # type: ignore[attr-defined, no-untyped-call]
    try:
        if not context.join(timeout_s, grace_period=5):
            raise TimeoutError(f"{ranks} ranks did not finish {len(cases)} cases in {timeout_s:g} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()
    results = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]
    return {
        (case.name, kind): compare(
            [result[case.name][kind] for result in results], results[0][case.name]["one process"]
        )
        for case in cases
        for kind in kinds
    }


def _process(rank: int, ranks: int, cases: list[Case], kinds: list[Kind], folder: Path, timeout_s: float) -> None:
    """One rank: every case as one process and in every kind."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout_s / 2),
    )
    comm = GroupComm()
    results: dict[str, dict[str, Tensor]] = {}
    for case in cases:
        model, arguments = case.build()
        results[case.name] = {"one process": forward(model, arguments)}
        for kind in kinds:
            results[case.name][kind] = on_rank((model, arguments), plan_for(model), comm, kind)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()
