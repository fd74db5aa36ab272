"""Every plan for diffusers gives what one process gives, on any number of ranks and in every kind."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("diffusers")

from sequence_diffusers import CASES
from sequence_ranks import GRID, LIMIT, on_processes, on_threads
from sequence_tiny import Case, first_of_each

from ray_parallel.sequence import Kind
from ray_parallel.sequence.plans import plan_for

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@cases
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ulysses_gives_what_one_process_gives(case: Case, ranks: int) -> None:
    built = case.build()
    parity = on_threads(built, plan_for(built[0]), ranks)
    assert parity.difference <= LIMIT
    assert parity.alike


@pytest.mark.parametrize("case", first_of_each(CASES), ids=lambda case: case.architecture)
@pytest.mark.parametrize(("kind", "ranks"), [("ring", 3), ("all_gather", 3), ("usp", 4)])
def test_every_kind_gives_what_one_process_gives(case: Case, kind: Kind, ranks: int) -> None:
    built = case.build()
    assert on_threads(built, plan_for(built[0]), ranks, kind).difference <= LIMIT


@pytest.mark.slow
@cases
@pytest.mark.parametrize(("kind", "ranks"), GRID)
def test_the_whole_grid(case: Case, kind: Kind, ranks: int) -> None:
    built = case.build()
    assert on_threads(built, plan_for(built[0]), ranks, kind).difference <= LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_processes_with_gloo_give_what_one_process_gives(ranks: int, tmp_path: Path) -> None:
    kinds: list[Kind] = [kind for kind, count in GRID if count == ranks]
    for (name, kind), parity in on_processes(CASES, ranks, kinds, tmp_path).items():
        assert parity.difference <= LIMIT, (name, kind)
