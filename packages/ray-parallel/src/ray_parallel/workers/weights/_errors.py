"""What can go wrong with shared weights."""

from __future__ import annotations

from collections.abc import Sequence

from alloc_spec import human_size
from ray_parallel.workers._errors import WorkersError

_SHOWN = 5


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
        needed = human_size(needed_bytes, rounding="up")
        available = human_size(available_bytes, rounding="down")
        super().__init__(
            f"{what} need {needed} but {where} has {available}; nothing was loaded, and nothing is spilled to disk; "
            f"{remedy}"
        )


def listed(names: Sequence[str]) -> str:
    """A few names, quoted, and how many more there are.

    >>> listed(["a", "b"]), listed([str(n) for n in range(7)])
    ("'a', 'b'", "'0', '1', '2', '3', '4' and 2 more")
    """
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
