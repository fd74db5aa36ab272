"""What can go wrong with workers and shared weights; every message names the thing, the reason and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_parallel._errors import ParallelError

_SHOWN = 5


class WorkersError(ParallelError):
    """Root of the errors of `ray_parallel.workers`."""


class InvalidRequestError(WorkersError, ValueError):
    """An argument contradicts itself, the machine, or the rule that only plain data and tensors travel."""


class WeightsError(WorkersError):
    """Weights cannot be described, shared or opened.

    Attributes:
        source: the file, or what the tensors were called.
    """

    def __init__(self, source: str, reason: str, remedy: str) -> None:
        self.source = source
        super().__init__(f"{source}: {reason}; {remedy}")


class SharedWriteError(WeightsError):
    """Somebody wrote in place to weights whose memory other processes read.

    Attributes:
        names: the tensors that were written.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(
            listed(self.names),
            "written in place, but a tensor of the object store is one memory for all workers, so their results are "
            "no longer to be trusted",
            "apply LoRA and other changes beside the weights, or to a clone, never in place; weights opened from a "
            "file may be written, each worker then has its own copy of the page",
        )


class ObjectStoreSizeError(WorkersError):
    """The object store is too small, or the machine is too small for the store that is needed.

    Attributes:
        needed_bytes: what has to fit.
        available_bytes: what there is.
    """

    def __init__(self, *, what: str, needed_bytes: int, available_bytes: int, where: str, remedy: str) -> None:
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        super().__init__(
            f"{what} need {gib(needed_bytes)} but {where} has {gib(available_bytes)}; nothing was loaded, and nothing "
            f"is spilled to disk; {remedy}"
        )


class ClusterError(WorkersError):
    """A Ray cluster cannot be started, reached or used."""


class GpuIndexError(InvalidRequestError):
    """`gpu_indices` names a GPU that is not there, or names them in a way that cannot be read.

    Attributes:
        text: what was asked for.
    """

    def __init__(self, text: str, reason: str, remedy: str) -> None:
        self.text = text
        super().__init__(f"gpu_indices {text!r}: {reason}; {remedy}")


class PortTakenError(ClusterError):
    """The address at which the workers were to meet is in use.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"the workers cannot meet at {address}: another process listens there; name a free port, or port 0 to let "
            "the operating system choose one"
        )


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


def listed(names: Sequence[str]) -> str:
    """A few names, quoted, and how many more there are.

    >>> listed(["a", "b"]), listed([str(n) for n in range(7)])
    ("'a', 'b'", "'0', '1', '2', '3', '4' and 2 more")
    """
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def gib(size_bytes: int) -> str:
    """A size for people.

    >>> gib(3 << 29), gib(5 << 20)
    ('1.50 GiB', '5.0 MiB')
    """
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"
