"""What every end of `Comm` must do, as functions of one rank."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import torch

from ray_parallel.sequence import Comm, CommError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool, torch.float8_e4m3fn)


def sizes_between(sender: int, receiver: int) -> int:
    """Uneven, and sometimes nothing."""
    return (sender * 3 + receiver * 2) % 5


def elements(sender: int, receiver: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """What `sender` has for `receiver`."""
    return ((torch.arange(count) + sender * 7 + receiver) % 2).to(dtype)


def check_all_to_all(comm: Comm) -> None:
    for dtype in DTYPES:
        before = comm.traffic.sent_bytes["all_to_all"]
        parts = [elements(comm.rank, to, sizes_between(comm.rank, to), dtype) for to in range(comm.size)]
        sizes = [sizes_between(sender, comm.rank) for sender in range(comm.size)]
        got = comm.all_to_all(parts, sizes)
        for sender, part in enumerate(got):
            want = elements(sender, comm.rank, sizes[sender], dtype)
            assert part.dtype == dtype
            assert torch.equal(part.float(), want.float())
        sent = sum(part.numel() for to, part in enumerate(parts) if to != comm.rank) * parts[0].element_size()
        assert comm.traffic.sent_bytes["all_to_all"] - before == sent


def check_all_gather(comm: Comm) -> None:
    for dtype in DTYPES:
        for sizes in ([rank * 2 for rank in range(comm.size)], [3] * comm.size):
            before = comm.traffic.sent_bytes["all_gather"]
            mine = elements(comm.rank, 0, sizes[comm.rank], dtype)
            got = comm.all_gather(mine, sizes)
            for sender, part in enumerate(got):
                assert part.dtype == dtype
                assert torch.equal(part.float(), elements(sender, 0, sizes[sender], dtype).float())
            sent = mine.numel() * mine.element_size() * (comm.size - 1)
            assert comm.traffic.sent_bytes["all_gather"] - before == sent


def check_shift(comm: Comm) -> None:
    for dtype in DTYPES:
        held, owner = elements(comm.rank, 0, comm.rank, dtype), comm.rank
        for _ in range(comm.size):
            owner = (owner - 1) % comm.size
            held = comm.shift(held, owner)
            assert torch.equal(held.float(), elements(owner, 0, owner, dtype).float())
        assert owner == comm.rank


def check_agree(comm: Comm) -> None:
    assert comm.agree(bytes([comm.rank, 255])) == [bytes([rank, 255]) for rank in range(comm.size)]
    assert comm.traffic.total_bytes == 0


def check_split(comm: Comm) -> None:
    even, odd = list(range(0, comm.size, 2)), list(range(1, comm.size, 2))
    half = comm.split([even, odd])
    members = odd if comm.rank % 2 else even
    assert (half.rank, half.size) == (members.index(comm.rank), len(members))
    assert half.agree(bytes([comm.rank])) == [bytes([member]) for member in members]
    alone = half.split([[rank] for rank in range(half.size)])
    assert alone.agree(b"x") == [b"x"]
    assert torch.equal(alone.all_to_all([torch.ones(2)], [2])[0], torch.ones(2))
    assert torch.equal(alone.all_gather(torch.ones(2), [2])[0], torch.ones(2))
    assert torch.equal(alone.shift(torch.ones(2), 2), torch.ones(2))
    assert alone.traffic.total_bytes == 0
    with pytest.raises(CommError, match="exactly one group"):
        comm.split([[0], [0]])


def check_a_receiver_may_keep_what_it_got(comm: Comm) -> None:
    mine = torch.full((4,), float(comm.rank))
    got = comm.all_gather(mine, [4] * comm.size)
    mine.fill_(-1)
    comm.agree(b"everybody has written")
    others = [part for rank, part in enumerate(got) if rank != comm.rank]
    assert all(
        (part == rank).all() for part, rank in zip(others, [r for r in range(comm.size) if r != comm.rank], strict=True)
    )


CHECKS: tuple[Callable[[Comm], None], ...] = (
    check_agree,
    check_all_to_all,
    check_all_gather,
    check_shift,
    check_split,
    check_a_receiver_may_keep_what_it_got,
)


def run_checks(comm: Comm) -> None:
    """The whole suite on this rank."""
    assert isinstance(comm, Comm)
    for check in CHECKS:
        check(comm)


def lose_a_rank(comm: Comm) -> None:
    """Rank 1 is killed; the others are told soon, in a typed error."""
    comm.agree(b"here")
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    with pytest.raises(CommError, match="a rank is gone or stalled"):
        comm.all_gather(torch.ones(3), [3] * comm.size)
    assert time.monotonic() - begin < 15
