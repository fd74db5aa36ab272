"""Every plan gives what one process gives, on any number of ranks and in every kind; with a mistake in it none does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from sequence_cases import both_hosts, by_plan, every_architecture, every_case
from sequence_mutations import notices, refusals
from sequence_ranks import LIMIT, on_processes, on_threads
from sequence_tiny import Case

from ray_parallel.sequence import Kind
from ray_parallel.sequence.plans import plan_for


@pytest.mark.parametrize("case", every_case())
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ulysses_gives_what_one_process_gives(case: Case, ranks: int) -> None:
    built = case.build()
    parity = on_threads(built, plan_for(built[0]), ranks)
    assert parity.difference <= LIMIT
    assert parity.alike


@pytest.mark.parametrize("case", every_architecture())
@pytest.mark.parametrize(("kind", "ranks"), [("ring", 3), ("all_gather", 3), ("usp", 4)])
def test_every_kind_gives_what_one_process_gives(case: Case, kind: Kind, ranks: int) -> None:
    built = case.build()
    assert on_threads(built, plan_for(built[0]), ranks, kind).difference <= LIMIT


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("cases", both_hosts())
def test_processes_with_gloo_give_it_in_every_kind_on_any_number_of_ranks(
    cases: Sequence[Case], tmp_path: Path
) -> None:
    for (name, kind, ranks), parity in on_processes(cases, tmp_path).items():
        assert parity.difference <= LIMIT, (name, kind, ranks)
        assert parity.alike, (name, kind, ranks)


@pytest.mark.parametrize("cases", by_plan())
def test_every_argument_is_refused_by_its_name_when_it_is_forgotten(cases: Sequence[Case]) -> None:
    assert [where for where, refused in refusals(cases).items() if not refused] == []


@pytest.mark.parametrize("cases", by_plan())
def test_every_cut_argument_is_noticed_when_it_is_called_whole(cases: Sequence[Case]) -> None:
    # ComfyUI only ever says "all of the text" there, which means the same for a part of it.
    same = {"Flux, double_blocks: modulation_dims_txt"}
    assert {where for where, noticed in notices(cases).items() if not noticed} <= same
