"""Threads that work as ranks: a team that stays for a session, or threads for one call."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch

from ray_parallel.sequence.ranks._comm import CommError
from ray_parallel.sequence.ranks._threads import Copy, Hub, LeftAloneError, ThreadComm, copy_directly

T = TypeVar("T")


class _Job(NamedTuple):
    """What all ranks do, and the modes of the caller's thread, which torch keeps for each thread."""

    function: Callable[[ThreadComm], Any]
    grad: bool
    inference: bool


class _Done(NamedTuple):
    """What a rank has to report."""

    rank: int
    result: Any
    error: BaseException | None


class ThreadTeam:
    """Ranks as threads of this process: rank 0 is the caller's own thread, every other rank a thread that stays.

    Each thread makes its device the current one, since kernels of Triton, sage and flash attention are launched
    there. A failed call ends the team: what its ranks had agreed on is gone.

    Args:
        devices: where each rank computes, rank 0 first; None: the rank keeps what it gets where the sender has it.
        timeout_s: how long a rank waits for the others in one collective, seconds.
        copy: how a tensor gets to a rank's device.

    Attributes:
        devices: as given.
        comms: the ranks' ends, in rank order; the same ones in every call, so that groups and plans made in one call
            serve the next.

    Raises:
        CommError: no device was given.

    Examples:
        >>> with ThreadTeam([torch.device("cpu")] * 2) as team:
        ...     [[t.item() for t in both] for both in team.run(lambda c: c.all_gather(torch.tensor([c.rank]), [1, 1]))]
        [[0, 1], [0, 1]]
    """

    def __init__(
        self, devices: Sequence[torch.device | None], *, timeout_s: float = 600.0, copy: Copy = copy_directly
    ) -> None:
        if not devices:
            raise CommError("a team of threads needs at least one device; give one for each rank")
        self.devices = tuple(devices)
        self._hub = Hub(len(devices), timeout_s)
        self.comms = tuple(ThreadComm(self._hub, rank, device, copy) for rank, device in enumerate(devices))
        self._jobs: list[queue.SimpleQueue[_Job | None]] = [queue.SimpleQueue() for _ in devices]
        self._done: queue.SimpleQueue[_Done] = queue.SimpleQueue()
        self._ended: str | None = None
        self._running = False
        # A rank that hangs inside a kernel must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, args=(rank,), name=f"rank {rank}", daemon=True)
            for rank in range(1, len(devices))
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> ThreadTeam:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, function: Callable[[ThreadComm], T]) -> list[T]:
        """Run `function(comm)` on every rank and return the results in rank order.

        Every rank has the caller's gradient and inference mode. When one fails, the others end at their next
        collective; this call waits for all of them, also when it is interrupted.

        Raises:
            CommError: the team has ended, or is running already.
            BaseException: what the lowest rank raised that failed by itself. An interruption is one of these.
        """
        if self._ended is not None:
            raise CommError(f"this team of {len(self.devices)} threads has ended: {self._ended}; make a new one")
        if self._running:
            raise CommError("the team is running already; a rank cannot start another run of the team it belongs to")
        self._running = True
        try:
            return self._run(function)
        finally:
            self._running = False

    def close(self) -> None:
        """End the threads; a second time does nothing.

        Raises:
            CommError: a thread did not end within the time limit of a collective.
        """
        if self._ended is None:
            self._ended = "it was closed"
        self._hub.fail(self._ended)
        threads, self._threads = self._threads, []
        for rank in range(1, len(threads) + 1):
            self._jobs[rank].put(None)
        for thread in threads:
            thread.join(self._hub.timeout_s)
        left = [thread.name for thread in threads if thread.is_alive()]
        if left:
            raise CommError(f"{', '.join(left)} did not end within {self._hub.timeout_s:g} seconds")

    def _run(self, function: Callable[[ThreadComm], T]) -> list[T]:
        job = _Job(function, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        self._hub.reopen()
        for rank in range(1, len(self.devices)):
            self._jobs[rank].put(job)
        done = {0: self._do(0, job)}
        interruption: BaseException | None = None
        while len(done) < len(self.devices):
            try:
                report = self._done.get()
            except BaseException as error:  # noqa: BLE001 - raised below, when no rank works any more
                self._hub.fail("the caller was interrupted")
                interruption = interruption or error
                continue
            done[report.rank] = report
        errors = [done[rank].error for rank in sorted(done)]
        failures = [error for error in (interruption, *errors) if error is not None]
        if failures:
            own = next((error for error in failures if not isinstance(error, LeftAloneError)), failures[0])
            self._ended = f"{type(own).__name__} in its last run"
            raise own
        return [done[rank].result for rank in range(len(self.devices))]

    def _work(self, rank: int) -> None:
        while (job := self._jobs[rank].get()) is not None:
            self._done.put(self._do(rank, job))

    def _do(self, rank: int, job: _Job) -> _Done:
        device = self.devices[rank]
        try:
            with _current(device), torch.inference_mode(job.inference), torch.set_grad_enabled(job.grad):
                result = job.function(self.comms[rank])
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            self._hub.fail(f"rank {rank} failed with {type(error).__name__}")
            return _Done(rank, None, error)
        self._hub.leave(rank, f"rank {rank} has finished")
        return _Done(rank, result, None)


def run_threads(ranks: int, function: Callable[[ThreadComm], T], *, timeout_s: float = 60.0) -> list[T]:
    """Run `function(comm)` once for each rank, each in its own thread, and return the results in rank order.

    Every rank needs its own model object, since a plan is applied to one by hooks.

    Args:
        ranks: number of threads; rank 0 is the caller's.
        function: what each rank does.
        timeout_s: how long a rank waits for the others in one collective, seconds.

    Raises:
        BaseException: what the lowest rank raised that failed by itself; the others are woken and end with
            `CommError`.

    Examples:
        >>> run_threads(3, lambda comm: [t.item() for t in comm.all_gather(torch.tensor([comm.rank]), [1, 1, 1])])
        [[0, 1, 2], [0, 1, 2], [0, 1, 2]]
    """
    with ThreadTeam([None] * ranks, timeout_s=timeout_s) as team:
        return team.run(function)


def _current(device: torch.device | None) -> contextlib.AbstractContextManager[Any]:
    """Makes an accelerator with a number the current one of this thread, and the earlier one after it."""
    accelerator = torch.accelerator.current_accelerator() if device is not None and device.type != "cpu" else None
    if device is None or device.index is None or accelerator is None or accelerator.type != device.type:
        return contextlib.nullcontext()
    return torch.accelerator.device_index(device.index)
