"""What a group of workers is asked to be; plain data, checked before anything is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_parallel.workers._errors import InvalidRequestError
from ray_parallel.workers.cluster._rendezvous import split_address
from ray_parallel.workers.group._devices import Device
from ray_parallel.workers.group._names import require_name
from ray_parallel.workers.weights._plain import Plain, require_plain
from ray_parallel.workers.weights._shared import SharedWeights

MOST = 4096
"""Workers, or threads of one: more is a mistake, not a machine."""

LONGEST_SECONDS = 366 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a worker builds what it works with; a new generation builds it again.

    Attributes:
        factory: ``"package.module:function"``, called as ``function(context, **arguments)`` in each worker; what it
            returns is handed to every later call. None for workers that need nothing.
        arguments: plain data and tensors.
        weights: shared weights, which the factory finds as ``context.weights``.

    Raises:
        InvalidRequestError: the factory is no name, or an argument is not plain data.
    """

    factory: str | None = None
    arguments: Mapping[str, Plain] = field(default_factory=dict)
    weights: SharedWeights | None = None

    def __post_init__(self) -> None:
        if self.factory is not None:
            require_name(self.factory, "factory")
        require_plain(self.arguments, "the arguments of the factory")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupOptions:
    """How many workers, where they compute, and how long anything may take.

    Attributes:
        workers: processes that work on one call together.
        gpu_indices: which GPUs of this machine, ``"0,2"``; empty for the first ones.
        device: ``"auto"`` takes GPUs where there are some, and else the CPU.
        threads: threads that torch uses in a worker that computes on the CPU.
        torch_dist_address: ``"host:port"`` at which the workers meet; empty for a free port of rank 0's machine.
        environment: environment variables of the workers, beside those that are set for them.
        start_seconds: deadline for starting, meeting and loading.
        call_seconds: deadline of a call.
        step_seconds: deadline between two signs of progress of a call that reports its steps, and up to the first one.
        cancel_seconds: deadline for stopping after a cancellation.

    Raises:
        InvalidRequestError: a number or the address makes no sense.
    """

    workers: int = 2
    gpu_indices: str = ""
    device: Device = "auto"
    threads: int = 1
    torch_dist_address: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float = 300.0
    call_seconds: float = 3600.0
    step_seconds: float = 600.0
    cancel_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("workers", "threads"):
            count = getattr(self, name)
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
                raise InvalidRequestError(f"{name} is {_quoted(count)}; give a whole number from 1 to {MOST}")
        for name in ("start_seconds", "call_seconds", "step_seconds", "cancel_seconds"):
            seconds = getattr(self, name)
            if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds <= LONGEST_SECONDS:
                raise InvalidRequestError(
                    f"{name} is {_quoted(seconds)}; every deadline is a number of seconds above 0, at most a year"
                )
        for name in ("gpu_indices", "torch_dist_address"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise InvalidRequestError(f"{name} is {_quoted(text)}; give text, empty for the default")
        if not isinstance(self.environment, Mapping) or not all(
            isinstance(word, str) for pair in self.environment.items() for word in pair
        ):
            raise InvalidRequestError(f"environment is {_quoted(self.environment)}; give a mapping of text to text")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InvalidRequestError(f'device {_quoted(self.device)} is unknown; say "auto", "cpu" or "cuda"')
        if self.torch_dist_address:
            split_address(self.torch_dist_address)


def _quoted(value: object) -> str:
    """A value as a message shows it: at most 60 characters."""
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of many digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
