"""What a placed model did so far, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementStats:
    """Counts since a model was placed.

    Attributes:
        passes: forwards of the whole model; stays 0 when only its parts are called.
        calls: forwards of units with streamed tensors.
        copies: copies started, one for each donor of a unit that was fetched.
        copied_bytes: bytes of these, by donor.
        surprises: calls that were not the ones expected, after which the order was learnt again.
        refetches: units fetched again because their tensors had been edited or replaced.
        waits: forwards that waited on the host for their bytes. Always 0 on an accelerator, which waits by itself.
        wait_seconds: how long they did.
        hook_seconds: host time spent in the engine, waits not included.
        held_bytes: bytes of weights on each device of the plan now, on the compute device with the slots; alignment
            included where tensors lie in a common buffer.
        pinned_bytes: bytes of these that are page-locked host memory.
        uncalled: paths of units with streamed tensors that no forward has called yet.
    """

    passes: int
    calls: int
    copies: int
    copied_bytes: Mapping[str, int]
    surprises: int
    refetches: int
    waits: int
    wait_seconds: float
    hook_seconds: float
    held_bytes: Mapping[str, int]
    pinned_bytes: int
    uncalled: tuple[str, ...]
