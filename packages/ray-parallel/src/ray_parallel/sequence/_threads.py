"""Ranks as threads of one process: the other end of `Comm`, for tests, for tools, and for a look without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from ray_parallel._errors import CommError
from ray_parallel.sequence._comm import Traffic, member_of

T = TypeVar("T")


class _LeftAloneError(CommError):
    """A rank failed because another one did."""


class _Hub:
    """Where the threads of one group meet: a slot for each and a barrier."""

    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.children: dict[tuple[int, ...], _Hub] = {}
        self.lock = threading.Lock()

    def child(self, members: Sequence[int]) -> _Hub:
        """The hub of a sub-group, the same one for all its members."""
        with self.lock:
            child = self.children.setdefault(tuple(members), _Hub(len(members), self.timeout_s))
            if self.barrier.broken:
                child.abort()
            return child

    def abort(self) -> None:
        """Wake everybody who waits, with an error."""
        self.barrier.abort()
        with self.lock:
            children = list(self.children.values())
        for child in children:
            child.abort()


class ThreadComm:
    """The end of a group of threads; made by `run_threads`.

    Senders offer references, receivers copy before anybody goes on, so the traffic of a process group is the same.
    """

    def __init__(self, hub: _Hub, rank: int) -> None:
        self.rank = rank
        self.size = hub.size
        self.traffic = Traffic()
        self._hub = hub

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """See `Comm.all_to_all`."""
        received: list[Tensor] = self._meet(list(parts), lambda offers: [self._copy(x[self.rank]) for x in offers])
        self._check("all_to_all", received, sizes)
        sent = sum(part.numel() for rank, part in enumerate(parts) if rank != self.rank)
        self.traffic.add("all_to_all", sent * parts[0].element_size())
        return received

    def all_gather(self, flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """See `Comm.all_gather`."""
        received: list[Tensor] = self._meet(flat, lambda offers: [self._copy(x) for x in offers])
        self._check("all_gather", received, sizes)
        self.traffic.add("all_gather", flat.numel() * flat.element_size() * (self.size - 1))
        return received

    def shift(self, flat: Tensor, size: int) -> Tensor:
        """See `Comm.shift`."""
        received: Tensor = self._meet(flat, lambda offers: self._copy(offers[(self.rank - 1) % self.size]))
        self._check("shift", [received], [size])
        self.traffic.add("shift", flat.numel() * flat.element_size() if self.size > 1 else 0)
        return received

    def agree(self, message: bytes) -> list[bytes]:
        """See `Comm.agree`."""
        received: list[bytes] = self._meet(message, list)
        return received

    def split(self, groups: Sequence[Sequence[int]]) -> ThreadComm:
        """See `Comm.split`."""
        members = member_of(groups, self.rank, self.size)
        return ThreadComm(self._hub.child(members), members.index(self.rank))

    def _meet(self, offer: Any, take: Callable[[list[Any]], Any]) -> Any:
        hub = self._hub
        hub.slots[self.rank] = offer
        try:
            hub.barrier.wait(hub.timeout_s)
            taken = take(hub.slots)
            hub.barrier.wait(hub.timeout_s)
        except threading.BrokenBarrierError as error:
            reason = f"rank {self.rank} of {self.size} was left alone: another rank failed or stalled"
            raise _LeftAloneError(reason) from error
        return taken

    @staticmethod
    def _copy(tensor: Tensor) -> Tensor:
        return tensor.detach().clone()

    def _check(self, collective: str, received: Sequence[Tensor], sizes: Sequence[int]) -> None:
        got = [part.numel() for part in received]
        if got != list(sizes):
            self._hub.abort()
            raise CommError(f"{collective}: rank {self.rank} expected {list(sizes)} elements, the ranks sent {got}")


def run_threads(ranks: int, function: Callable[[ThreadComm], T], *, timeout_s: float = 60.0) -> list[T]:
    """Run `function(comm)` once for each rank, each in its own thread, and return the results in rank order.

    Every rank needs its own model object, since a plan is applied to one by hooks.

    Args:
        ranks: number of threads.
        function: what each rank does.
        timeout_s: how long a rank waits for the others in one collective, seconds.

    Raises:
        Exception: what the lowest rank raised that failed by itself; the others are woken and end with `CommError`.

    Examples:
        >>> run_threads(3, lambda comm: [t.item() for t in comm.all_gather(torch.tensor([comm.rank]), [1, 1, 1])])
        [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    """
    hub = _Hub(ranks, timeout_s)
    results: list[Any] = [None] * ranks
    failures: dict[int, BaseException] = {}
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work(rank: int) -> None:
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                results[rank] = function(ThreadComm(hub, rank))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failures[rank] = error
            hub.abort()

    threads = [threading.Thread(target=work, args=(rank,), name=f"rank {rank}") for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        in_order = [failures[rank] for rank in sorted(failures)]
        raise next((error for error in in_order if not isinstance(error, _LeftAloneError)), in_order[0])
    return results
