"""What the ranks say to each other: four collectives with sizes that every rank already knows.

`Comm` is the protocol, with two ends: `GroupComm` over a process group of torch.distributed (gloo, nccl, rccl, xccl)
and `ThreadComm` between threads of one process. Both count what they send in the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from ray_parallel._errors import ParallelError


class CommError(ParallelError):
    """A collective did not finish: a rank is gone, raised, stalled past its deadline, or disagrees about sizes."""

    is_refusal = False


@dataclass(slots=True)
class Traffic:
    """What one rank has sent to the others: calls and bytes, by the name of the collective."""

    calls: Counter[str] = field(default_factory=Counter)
    sent_bytes: Counter[str] = field(default_factory=Counter)

    def add(self, collective: str, sent_bytes: int) -> None:
        """Count one call."""
        self.calls[collective] += 1
        self.sent_bytes[collective] += sent_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes sent to other ranks, all collectives together."""
        return self.sent_bytes.total()


@runtime_checkable
class Comm(Protocol):
    """One rank's end of a group.

    Every rank calls the same collectives in the same order. Tensors are flat and of one dtype; nothing about sizes is
    exchanged, so a rank that disagrees about them breaks the group: compare first (`agree`).

    Attributes:
        rank: this one, from 0.
        size: number of ranks.
        traffic: what this rank has sent.

    Raises:
        CommError: any of the methods, when a rank is gone, failed or did not come in time.
    """

    rank: int
    size: int
    traffic: Traffic

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Send `parts[r]` to rank r; return what each rank sent here, `sizes[r]` elements from rank r."""
        ...

    def all_gather(self, flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Send `flat` to all; return every rank's, `sizes[r]` elements from rank r."""
        ...

    def shift(self, flat: Tensor, size: int) -> Tensor:
        """Send `flat` to the next rank of the ring; return the `size` elements of the previous one."""
        ...

    def agree(self, message: bytes) -> list[bytes]:
        """Every rank's message, all of the same length."""
        ...

    def split(self, groups: Sequence[Sequence[int]]) -> Comm:
        """This rank's end of a new group; `groups` lists the ranks of all new groups, each rank once."""
        ...


def member_of(groups: Sequence[Sequence[int]], rank: int, size: int) -> list[int]:
    """The group that `rank` is in.

    Raises:
        CommError: the groups are not a partition of the ranks.
    """
    if sorted(member for group in groups for member in group) != list(range(size)):
        raise CommError(f"{groups} does not split {size} ranks; every rank belongs to exactly one group")
    return next(list(group) for group in groups if rank in group)


class GroupComm:
    """The end of a process group.

    Args:
        group: the process group; None: the default one, already initialised.
        device: where messages of `agree` travel; None: the CPU for gloo, the accelerator of the process otherwise.
        timeout_s: deadline of collectives in the groups that `split` makes, seconds; None: torch's default, which is
            half an hour with gloo. That of `group` itself was set when it was made.

    Raises:
        CommError: torch.distributed is not initialised, or this process is not in the group.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        device: torch.device | None = None,
        timeout_s: float | None = None,
    ) -> None:
        if not dist.is_initialized():
            raise CommError("there is no process group; call torch.distributed.init_process_group on every rank first")
        self.group: dist.ProcessGroup = group if group is not None else dist.distributed_c10d._get_default_group()
        self.rank = dist.get_rank(self.group)
        self.size = dist.get_world_size(self.group)
        if self.rank < 0:
            raise CommError("this process is not a member of the group")
        gloo = dist.get_backend(self.group) == "gloo"
        accelerator = None if gloo else torch.accelerator.current_accelerator()
        self.device = device or accelerator or torch.device("cpu")
        self.timeout_s = timeout_s
        self.traffic = Traffic()

    def all_to_all(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """See `Comm.all_to_all`."""
        if self.size == 1:
            return [parts[0]]
        send = torch.cat([_wire(part) for part in parts])
        received = send.new_empty(sum(sizes))
        counts = [part.numel() for part in parts]
        with _told("all_to_all"):
            dist.all_to_all_single(received, send, list(sizes), counts, group=self.group)
        self.traffic.add("all_to_all", (send.numel() - counts[self.rank]) * send.element_size())
        return [part.view(parts[0].dtype) for part in torch.split(received, list(sizes))]

    def all_gather(self, flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """See `Comm.all_gather`."""
        if self.size == 1:
            return [flat]
        send = _wire(flat.contiguous())
        out = [send if rank == self.rank else send.new_empty(size) for rank, size in enumerate(sizes)]
        if len(set(sizes)) == 1:
            with _told("all_gather"):
                dist.all_gather(out, send, group=self.group)
        else:
            others = [rank for rank in range(self.size) if rank != self.rank]
            operations = [self._send(send, peer) for peer in others if send.numel()]
            operations += [self._receive(out[peer], peer) for peer in others if sizes[peer]]
            self._exchange("all_gather", operations)
        self.traffic.add("all_gather", send.numel() * send.element_size() * (self.size - 1))
        return [part.view(flat.dtype) for part in out]

    def shift(self, flat: Tensor, size: int) -> Tensor:
        """See `Comm.shift`."""
        if self.size == 1:
            return flat
        send = _wire(flat.contiguous())
        received = send.new_empty(size)
        following, previous = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        operations = [self._send(send, following)] if send.numel() else []
        operations += [self._receive(received, previous)] if size else []
        self._exchange("shift", operations)
        self.traffic.add("shift", send.numel() * send.element_size())
        return received.view(flat.dtype)

    def agree(self, message: bytes) -> list[bytes]:
        """See `Comm.agree`."""
        mine = torch.frombuffer(bytearray(message), dtype=torch.uint8).to(self.device)
        received = [torch.empty_like(mine) for _ in range(self.size)]
        with _told("agree"):
            dist.all_gather(received, mine, group=self.group)
        return [bytes(part.tolist()) for part in received]

    def split(self, groups: Sequence[Sequence[int]]) -> GroupComm:
        """See `Comm.split`."""
        members = member_of(groups, self.rank, self.size)
        with _told("split"):
            ranks = [dist.get_global_rank(self.group, member) for member in members]
            timeout = None if self.timeout_s is None else timedelta(seconds=self.timeout_s)
            group = dist.new_group(ranks, timeout=timeout, use_local_synchronization=True)
        if isinstance(group, int):
            raise CommError(f"split failed: rank {self.rank} is in none of {groups}")
        return GroupComm(group, device=self.device, timeout_s=self.timeout_s)

    def _send(self, tensor: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(dist.isend, tensor, group=self.group, group_peer=peer)

    def _receive(self, tensor: Tensor, peer: int) -> dist.P2POp:
        return dist.P2POp(dist.irecv, tensor, group=self.group, group_peer=peer)

    def _exchange(self, collective: str, operations: list[dist.P2POp]) -> None:
        with _told(collective):
            for work in dist.batch_isend_irecv(operations) if operations else ():
                work.wait()


@contextmanager
def _told(collective: str) -> Iterator[None]:
    """Turn the backends' errors into ours."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CommError(f"{collective} failed: {reason}; a rank is gone or stalled: rebuild the group") from error


def _wire(tensor: Tensor) -> Tensor:
    """The tensor as the backends can carry it: 8-bit floats travel as bytes."""
    return tensor.view(torch.uint8) if tensor.dtype.is_floating_point and tensor.element_size() == 1 else tensor
