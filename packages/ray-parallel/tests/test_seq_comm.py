"""Both ends of `Comm` pass the same suite: threads in the fast run, gloo processes in the slow one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gloo_processes import start
from seq_comm_checks import CHECKS, lose_a_rank, run_checks
from torch.multiprocessing.spawn import ProcessExitedException

from ray_parallel.sequence import Comm, CommError, GroupComm, ThreadComm, run_threads


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_threads(check: Callable[[Comm], None], ranks: int) -> None:
    run_threads(ranks, check, timeout_s=10)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_gloo_processes(ranks: int, tmp_path: Path) -> None:
    start(run_checks, ranks, tmp_path)


@pytest.mark.slow
def test_a_killed_process_is_a_typed_error_for_the_others(tmp_path: Path) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        start(lose_a_rank, 3, tmp_path)


def test_without_a_process_group() -> None:
    with pytest.raises(CommError, match="init_process_group"):
        GroupComm()


def test_threads_are_an_end_of_the_protocol() -> None:
    assert run_threads(1, lambda comm: isinstance(comm, Comm)) == [True]


@pytest.mark.parametrize(
    "collective",
    [
        lambda comm, n: comm.all_to_all([torch.ones(n), torch.ones(n)], [n, n]),
        lambda comm, n: comm.all_gather(torch.ones(n), [n, n]),
        lambda comm, n: comm.shift(torch.ones(n), n),
    ],
)
def test_ranks_that_disagree_about_sizes(collective: Callable[[ThreadComm, int], object]) -> None:
    with pytest.raises(CommError, match="expected"):
        run_threads(2, lambda comm: collective(comm, 3 + comm.rank), timeout_s=5)


def test_a_rank_that_stalls_is_not_waited_for_longer_than_agreed() -> None:
    done = threading.Event()

    def rank(comm: ThreadComm) -> None:
        if comm.rank == 1:
            done.wait(10)
            return
        try:
            comm.agree(b"x")
        finally:
            done.set()

    with pytest.raises(CommError, match="did not come within"):
        run_threads(2, rank, timeout_s=0.1)


def test_a_failing_rank_wakes_those_in_a_group_of_their_own() -> None:
    def rank(comm: ThreadComm) -> None:
        half = comm.split([[0, 1], [2]])
        if comm.rank == 1:
            raise KeyError("rank 1")
        half.agree(b"x")

    with pytest.raises(KeyError, match="rank 1"):
        run_threads(3, rank, timeout_s=20)


def test_results_come_in_rank_order_and_modes_of_torch_are_the_callers() -> None:
    with torch.no_grad():
        assert run_threads(3, lambda comm: (comm.rank, torch.is_grad_enabled())) == [(0, False), (1, False), (2, False)]
    with torch.inference_mode():
        assert run_threads(1, lambda _: torch.is_inference_mode_enabled()) == [True]
    assert run_threads(1, lambda _: torch.is_grad_enabled()) == [True]
