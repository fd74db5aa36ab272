"""What can go wrong with a group of workers and its calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_parallel.workers._errors import InvalidRequestError, WorkersError


class GpuIndexError(InvalidRequestError):
    """`gpu_indices` names a GPU that is not there, or names them in a way that cannot be read.

    Attributes:
        text: what was asked for.
    """

    def __init__(self, text: str, reason: str, remedy: str) -> None:
        self.text = text
        super().__init__(f"gpu_indices {text!r}: {reason}; {remedy}")


class VersionMismatchError(WorkersError):
    """A worker runs other versions than the driver.

    Attributes:
        rank: the worker.
        differences: name of the software -> (the driver's version, the worker's version).
    """

    def __init__(self, rank: int, differences: Mapping[str, tuple[str, str]]) -> None:
        self.rank = rank
        self.differences = dict(differences)
        different = "; ".join(
            f"{name} {mine} here, {theirs} there" for name, (mine, theirs) in self.differences.items()
        )
        super().__init__(
            f"worker {rank} runs other versions than this process ({different}), which can change results silently; "
            "install the same versions on every machine"
        )


class GroupStateError(WorkersError):
    """A `WorkerGroup` is not in a state that allows what was asked: it is closed, or at work for another thread.

    Attributes:
        state: the state it is in.
    """

    def __init__(self, state: str, remedy: str) -> None:
        self.state = state
        super().__init__(f"the group of workers is {state}; {remedy}")


class WorkerFailure(WorkersError):
    """A call was not finished; the group is broken, its workers are gone, and the next call starts new ones.

    Attributes:
        rank: the worker it began with, or None when it is unknown.
        generation: which start of the group it belonged to, from 1.
    """

    def __init__(self, message: str, *, rank: int | None, generation: int) -> None:
        self.rank = rank
        self.generation = generation
        super().__init__(message)


class WorkerRaisedError(WorkerFailure):
    """A worker raised an exception.

    Attributes:
        kind: qualified name of the exception's class.
        reason: its message.
        worker_traceback: where it was raised, as text.
    """

    def __init__(self, *, rank: int, generation: int, kind: str, reason: str, worker_traceback: str) -> None:
        self.kind = kind
        self.reason = reason
        self.worker_traceback = worker_traceback
        super().__init__(
            f"worker {rank} raised {kind}: {reason}; the next call starts the workers again\n{worker_traceback}",
            rank=rank,
            generation=generation,
        )


class RunRefusedError(WorkerRaisedError):
    """What the worker raised is an error of this package: the request is refused, and would be refused again."""


class WorkerDiedError(WorkerFailure):
    """The process of a worker ended."""

    def __init__(self, *, rank: int, generation: int, reason: str) -> None:
        super().__init__(
            f"worker {rank} died: {reason}; the next call starts the workers again",
            rank=rank,
            generation=generation,
        )


class DeadlineExceededError(WorkerFailure):
    """A worker did not answer in time.

    Attributes:
        seconds: the deadline.
    """

    def __init__(self, *, what: str, rank: int | None, generation: int, seconds: float) -> None:
        self.seconds = seconds
        who = "the workers" if rank is None else f"worker {rank}"
        super().__init__(
            f"{who} did not finish {what} within {seconds:g} s and were ended; raise the deadline if that is how long "
            "it takes here, or look for what stalls; the next call starts the workers again",
            rank=rank,
            generation=generation,
        )


class RanksDisagreeError(WorkersError):
    """The workers came to different results where every one must have the same.

    Attributes:
        ranks: those that disagree with worker 0.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = tuple(ranks)
        super().__init__(
            f"worker {', '.join(map(str, self.ranks))} came to another result than worker 0, so none is given; the "
            "loop must draw no random numbers itself, and every worker must have the same hardware"
        )


class CancelledError(WorkersError):
    """The call was cancelled; all workers stopped at the same step and stay ready.

    Attributes:
        step: steps that were finished.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"cancelled after step {step}; the workers are ready for the next call")
