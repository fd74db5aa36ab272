"""One call of a group while it runs: what the workers tell, and the clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ray_parallel.workers.group._actors import CONTROL, Generation
from ray_parallel.workers.group._errors import CancelledError, DeadlineExceededError
from ray_parallel.workers.group._options import GroupOptions
from ray_parallel.workers.group._worker import Record
from ray_parallel.workers.weights._plain import Plain, decode

_POLL_SECONDS = 0.2
"""How often a waiting call looks at its clocks, and lets Ctrl-C through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One finished step.

    Attributes:
        done: steps that are finished.
        of: steps there are.
        preview: plain data that rank 0 sent along.
    """

    done: int
    of: int
    preview: Plain = None


class Call:
    """One call while it runs: the records of all workers, and the clocks."""

    def __init__(self, generation: Generation, number: int, limits: GroupOptions) -> None:
        self._generation = generation
        self._number = number
        self._limits = limits
        began = time.monotonic()
        self._call_ends = began + limits.call_seconds
        self._step_ends = began + limits.step_seconds
        self._cancel_ends: float | None = None
        self._interruption: BaseException | None = None

    def finish(
        self, function: str, arguments: Plain, on_step: Callable[[Progress], None] | None
    ) -> list[Plain] | BaseException:
        """Run to the end.

        Returns:
            The encoded results by rank; or why the workers stopped together, with the group intact.

        Raises:
            WorkerFailure: the group is broken.
        """
        import ray

        # Ray's own types take a stream for a reference, and a wait for references.
        wait: Any = ray.wait
        streams: dict[Any, int] = {
            actor.run.options(num_returns="streaming").remote(self._number, function, arguments): rank
            for rank, actor in enumerate(self._generation.actors)
        }
        ended: dict[int, Record] = {}
        while streams:
            ready, _ = wait(list(streams), num_returns=1, timeout=_POLL_SECONDS)
            self._check_clocks(streams.values(), silent=not ready)
            for stream in ready:
                rank = streams[stream]
                try:
                    record: Record = ray.get(next(stream))
                except ray.exceptions.RayActorError as error:
                    raise self._generation.death(rank, error) from error
                if record["event"] == "step":
                    self._tell(record, on_step)
                    continue
                if record["event"] == "failed":
                    raise self._generation.failure(rank, record)
                ended[rank] = record
                del streams[stream]
        stopped = [record["step"] for record in ended.values() if record["event"] == "cancelled"]
        if stopped:
            return self._interruption or CancelledError(stopped[0])
        return self._interruption or [ended[rank]["value"] for rank in sorted(ended)]

    def _tell(self, record: Record, on_step: Callable[[Progress], None] | None) -> None:
        if on_step is not None and self._interruption is None:
            try:
                on_step(Progress(done=record["done"], of=record["of"], preview=decode(record["preview"])))
            except Exception as error:  # noqa: BLE001 - raised again when all workers stopped
                self._interruption = error
                self._cancel_ends = time.monotonic() + self._limits.cancel_seconds
                cancel(self._generation, self._number)
        self._step_ends = time.monotonic() + self._limits.step_seconds

    def _check_clocks(self, late: Collection[int], *, silent: bool) -> None:
        """End the call when a deadline passed; that of a step only while no progress arrives."""
        now = time.monotonic()
        rank = next(iter(late)) if len(late) == 1 else None
        for ends, what, seconds in (
            (self._call_ends, "the call", self._limits.call_seconds),
            (self._step_ends if silent else None, "a step", self._limits.step_seconds),
            (self._cancel_ends, "stopping", self._limits.cancel_seconds),
        ):
            if ends is not None and now > ends:
                raise DeadlineExceededError(what=what, rank=rank, generation=self._generation.number, seconds=seconds)


def cancel(generation: Generation, call: int) -> None:
    """Tell all workers to end a call at its next step."""
    for actor in generation.actors:
        actor.cancel.options(concurrency_group=CONTROL).remote(call)
