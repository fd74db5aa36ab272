"""Threads as ranks: who waits for whom, what a failure or an interruption leaves behind, and values over devices."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_parallel.sequence import CommError, ThreadComm, ThreadTeam, run_threads

CPU = torch.device("cpu")


class Interruption(BaseException):
    """Like the exceptions that interrupt a run: no Exception."""


def gathered(comm: ThreadComm) -> list[int]:
    return [int(part) for part in comm.all_gather(torch.tensor([comm.rank]), [1] * comm.size)]


def test_a_team_keeps_its_threads_and_its_ends() -> None:
    with ThreadTeam([CPU] * 3) as team:
        names = [team.run(lambda _: threading.current_thread().name) for _ in range(2)]
        ends = [team.run(lambda comm: id(comm)) for _ in range(2)]
    assert names[0] == names[1] and names[0][0] == threading.current_thread().name and len(set(names[0])) == 3
    assert ends[0] == ends[1] == [id(comm) for comm in team.comms]


def test_groups_made_in_one_call_serve_the_next() -> None:
    def split(comm: ThreadComm) -> ThreadComm:
        return comm.split([[0, 2], [1]])

    with ThreadTeam([None] * 3) as team:
        halves = team.run(split)
        for _ in range(3):
            assert team.run(lambda comm: gathered(halves[comm.rank])) == [[0, 1], [0], [0, 1]]


def test_a_rank_that_finished_is_not_waited_for() -> None:
    started = time.monotonic()
    with pytest.raises(CommError, match="rank 0 of 2 was left alone: rank 1 has finished"):
        run_threads(2, lambda comm: comm.rank or comm.agree(b"x"), timeout_s=60)
    assert time.monotonic() - started < 30


def test_a_group_goes_on_when_a_rank_outside_it_has_finished() -> None:
    finished = threading.Event()

    def rank(comm: ThreadComm) -> list[int]:
        half = comm.split([[0], [1, 2]])
        if comm.rank == 0:
            finished.set()
            return []
        finished.wait(10)
        return gathered(half)

    assert run_threads(3, rank, timeout_s=10) == [[], [0, 1], [0, 1]]


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("error", [KeyError("mine"), Interruption("mine"), KeyboardInterrupt()])
def test_the_error_of_the_rank_that_failed_is_raised_and_ends_the_team(failing: int, error: BaseException) -> None:
    def rank(comm: ThreadComm) -> None:
        comm.agree(b"x")
        if comm.rank == failing:
            raise error
        comm.agree(b"y")

    before = threading.active_count()
    with ThreadTeam([None] * 3, timeout_s=20) as team:
        with pytest.raises(type(error)) as raised:
            team.run(rank)
        assert raised.value is error
        with pytest.raises(CommError, match=r"has ended: \w+ in its last run; make a new one"):
            team.run(rank)
    assert threading.active_count() == before


def test_a_run_inside_a_run_is_refused() -> None:
    with ThreadTeam([None] * 2, timeout_s=20) as team, pytest.raises(CommError, match="running already"):
        team.run(lambda _: team.run(lambda _: None))


def test_a_closed_team_and_one_without_devices_are_refused() -> None:
    team = ThreadTeam([None] * 2)
    team.close()
    team.close()
    with pytest.raises(CommError, match="has ended: it was closed"):
        team.run(lambda _: None)
    with pytest.raises(CommError, match="at least one device"):
        ThreadTeam([])


def test_modes_of_torch_are_the_callers_in_every_call() -> None:
    def modes(_comm: ThreadComm) -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    with ThreadTeam([None] * 2) as team:
        with torch.no_grad():
            assert team.run(modes) == [(False, False)] * 2
        with torch.inference_mode():
            assert team.run(modes) == [(False, True)] * 2
        assert team.run(modes) == [(True, False)] * 2


@given(ranks=st.integers(1, 4), shape=st.lists(st.integers(0, 3), max_size=3), text=st.text(max_size=3))
def test_what_the_first_rank_computes_reaches_all_by_value(ranks: int, shape: list[int], text: str) -> None:
    calls: list[int] = []

    def once() -> dict[str, Any]:
        calls.append(1)
        return {"a": [torch.ones(shape), text], "b": 3}

    results = run_threads(ranks, lambda comm: comm.on_first(once))
    assert len(calls) == 1
    for result in results:
        tensor, word = result["a"]
        assert torch.equal(tensor, torch.ones(shape)) and (word, result["b"]) == (text, 3)
    tensors = [result["a"][0] for result in results]
    assert len({tensor.data_ptr() for tensor in tensors if tensor.numel()}) in (0, ranks)


def test_a_failure_on_the_first_rank_reaches_the_caller_as_it_was_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        run_threads(3, lambda comm: comm.on_first(lambda: 1 // 0), timeout_s=20)
