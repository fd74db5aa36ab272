"""What a function that runs in a worker knows of its place, and how it reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from ray_parallel.workers.weights._open import OpenWeights
from ray_parallel.workers.weights._plain import Plain, encode


class StoppedAtStep(BaseException):
    """Ends a call at the step at which all ranks agreed to stop; no error, so that nobody handles it as one."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(step)


class WorkerContext:
    """One worker among the others; the first argument of every function that a worker is asked to run.

    Attributes:
        rank: its number, from 0.
        size: how many workers there are.
        device: where it computes: its GPU, or the CPU.
        weights: the shared weights, or None when the group has none.
        generation: which start of the group this is, from 1.
    """

    def __init__(
        self, *, rank: int, size: int, device: torch.device, weights: OpenWeights | None, generation: int
    ) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        self.weights = weights
        self.generation = generation
        self._control: dist.ProcessGroup | None = None
        self._emit: Callable[[dict[str, Any]], None] | None = None
        self._wants_stop: Callable[[], bool] | None = None

    def step(self, done: int, of: int, preview: Plain = None) -> None:
        """Tell that a step is finished; every rank calls this after the same steps.

        The caller sees the progress of rank 0. When the call was cancelled meanwhile, it ends here, on all ranks: they
        agree on it by exchanging one number, since a rank that stopped alone would leave the others waiting.

        Args:
            done: steps that are finished, from 1.
            of: steps there are.
            preview: plain data for the caller, such as a small latent; only that of rank 0 travels.
        """
        if self._emit is None or self._wants_stop is None:
            return
        if self.rank == 0:
            self._emit({"event": "step", "done": done, "of": of, "preview": encode(preview, "the preview")})
        stop = self._wants_stop()
        if self._control is not None:
            agreed = torch.tensor([int(stop)])
            dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self._control)
            stop = bool(agreed.item())
        if stop:
            raise StoppedAtStep(done)
