"""What the workers of the benchmarks run, named by ``"bench_tasks:function"``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ray_parallel.workers import WorkerContext


class TinyModel(nn.Module):
    """One layer; what is measured is everything around it."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one tensor like `x`."""
        result: torch.Tensor = self.layer(x)
        return result


def build(context: WorkerContext) -> TinyModel:
    """The model, from the shared weights."""
    assert context.weights is not None
    model = TinyModel()
    context.weights.load_into(model)
    return model


def nothing(context: WorkerContext, built: Any) -> int:
    """Answer."""
    return context.rank


def clocked_steps(context: WorkerContext, built: Any, *, count: int, pause: float) -> None:
    """Report steps, each with the moment of its report (one clock for all processes of a machine)."""
    for done in range(1, count + 1):
        time.sleep(pause)
        context.step(done, count, time.monotonic())


def waiting_steps(context: WorkerContext, built: Any, *, seconds: float) -> None:
    """Step every 10 ms until somebody cancels."""
    for done in range(int(seconds / 0.01)):
        time.sleep(0.01)
        context.step(done + 1, int(seconds / 0.01))


def forwards(model: nn.Module, step: Callable[..., None], *, inputs: dict[str, Any], count: int) -> torch.Tensor:
    """A loop that runs the same forward again and again."""
    result = torch.empty(0)
    for index in range(count):
        predicted = model(**inputs)
        result = predicted if isinstance(predicted, torch.Tensor) else predicted[0]
        step(index + 1, count)
    return result


def pid(context: WorkerContext, built: Any) -> int:
    """The worker's process."""
    return os.getpid()
