"""Ranks as threads of one process: the other end of `Comm`. They need neither process groups nor NCCL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ray_parallel.sequence.ranks._comm import CommError, Traffic, member_of
from ray_parallel.sequence.ranks._meeting import Meeting, MeetingError

T = TypeVar("T")
Copy = Callable[[Tensor, torch.device], Tensor]
"""copy(tensor, device) -> a new tensor on that device with the same values."""


def copy_directly(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that the devices make between themselves."""
    return tensor.to(device, copy=True)


class LeftAloneError(CommError):
    """A rank failed because another one did."""


class Hub:
    """Where the threads of one group meet: a slot for each, and the meetings of its sub-groups.

    Args:
        size: number of ranks.
        timeout_s: how long a rank waits for the others in one collective, seconds.
    """

    def __init__(self, size: int, timeout_s: float) -> None:
        self.size = size
        self.timeout_s = timeout_s
        self.slots: list[Any] = [None] * size
        self._meeting = Meeting(size)
        self._failed: str | None = None
        self._left: dict[int, str] = {}
        self._children: dict[tuple[int, ...], Hub] = {}
        self._lock = threading.Lock()

    def child(self, members: Sequence[int]) -> Hub:
        """The hub of a sub-group, the same one for all its members."""
        with self._lock:
            child = self._children.setdefault(tuple(members), Hub(len(members), self.timeout_s))
            if self._failed is not None:
                child.fail(self._failed)
            for rank in self._left.keys() & set(members):
                child.leave(members.index(rank), self._left[rank])
            return child

    def meet(self, rank: int, offer: Any, take: Callable[[list[Any]], Any]) -> Any:
        """Offer something to the others, and take from what they offer before anybody goes on.

        Raises:
            LeftAloneError: another rank failed, left, or did not come in time.
        """
        self.slots[rank] = offer
        try:
            self._meeting.wait(self.timeout_s)
            taken = take(self.slots)
            self._meeting.wait(self.timeout_s)
        except MeetingError as error:
            raise LeftAloneError(f"rank {rank} of {self.size} was left alone: {error}") from error
        return taken

    def fail(self, reason: str) -> None:
        """Wake everybody who waits here or in a sub-group, with an error."""
        with self._lock:
            self._failed = self._failed or reason
            children = list(self._children.values())
        self._meeting.end(reason)
        for child in children:
            child.fail(reason)

    def leave(self, rank: int, reason: str) -> None:
        """Say that a rank will not come again: who waits for it, here or in a sub-group of it, gets an error."""
        with self._lock:
            self._left[rank] = reason
            children = [(members, child) for members, child in self._children.items() if rank in members]
        self._meeting.end(reason)
        for members, child in children:
            child.leave(members.index(rank), reason)

    def reopen(self) -> None:
        """Let the ranks meet again; called while none of them runs. What they offered last is forgotten."""
        with self._lock:
            self._failed, self._left = None, {}
            children = list(self._children.values())
        self.slots[:] = [None] * self.size
        self._meeting.reopen()
        for child in children:
            child.reopen()


class ThreadComm:
    """The end of a group of threads; made by `run_threads` and `ThreadTeam`.

    Senders offer references, receivers copy to their own device before anybody goes on, so the traffic of a process
    group is the same.

    Args:
        hub: where the group meets.
        rank: this rank, from 0.
        device: where this rank computes, and what it receives goes; None: whatever the sender's tensor is on.
        copy: how it is copied there; devices that cannot reach each other need a way through the host's memory.
    """

    def __init__(self, hub: Hub, rank: int, device: torch.device | None = None, copy: Copy = copy_directly) -> None:
        self.rank = rank
        self.size = hub.size
        self.device = device
        self.traffic = Traffic()
        self._hub = hub
        self._copy_to = copy

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
        return ThreadComm(self._hub.child(members), members.index(self.rank), self.device, self._copy_to)

    def on_first(self, function: Callable[[], T]) -> T:
        """Run `function` on rank 0 alone; every rank gets its result, with copies of its tensors on its own device.

        For code that keeps a state or counts its calls, which every rank would run once more.

        Raises:
            LeftAloneError: on the other ranks, when the function fails on rank 0.
        """
        result = function() if self.rank == 0 else None

        def take(offers: list[Any]) -> Any:
            return result if self.rank == 0 else pytree.tree_map_only(Tensor, self._copy, offers[0])

        taken: T = self._meet(result, take)
        return taken

    def _meet(self, offer: Any, take: Callable[[list[Any]], Any]) -> Any:
        return self._hub.meet(self.rank, offer, take)

    def _copy(self, tensor: Tensor) -> Tensor:
        return self._copy_to(tensor.detach(), self.device or tensor.device)

    def _check(self, collective: str, received: Sequence[Tensor], sizes: Sequence[int]) -> None:
        got = [part.numel() for part in received]
        if got != list(sizes):
            self._hub.fail(f"{collective} of rank {self.rank} got other sizes than it expected")
            raise CommError(f"{collective}: rank {self.rank} expected {list(sizes)} elements, the ranks sent {got}")
