"""What can go wrong with workers and shared weights; every message names the thing, the reason and the remedy."""

from __future__ import annotations

from ray_parallel._errors import ParallelError


class WorkersError(ParallelError):
    """Root of the errors of `ray_parallel.workers`."""


class InvalidRequestError(WorkersError, ValueError):
    """An argument contradicts itself, the machine, or the rule that only plain data and tensors travel."""
