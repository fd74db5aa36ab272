"""What the workers of the tests build and run, named by ``"worker_tasks:function"``."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from ray_parallel.sequence import PlanError
from ray_parallel.workers import OpenWeights, WorkerContext


def build(context: WorkerContext, *, factor: float = 1.0) -> dict[str, Any]:
    """What `Recipe.factory` names here: remembers how it was built."""
    return {"factor": factor, "generation": context.generation, "calls": 0}


def build_slowly(context: WorkerContext, *, seconds: float) -> None:
    time.sleep(seconds)


def build_not(context: WorkerContext) -> None:
    raise FileNotFoundError("no model here")


def whoami(context: WorkerContext, built: Any) -> dict[str, Any]:
    return {
        "rank": context.rank,
        "size": context.size,
        "pid": os.getpid(),
        "device": str(context.device),
        "built": built,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": torch.get_num_threads(),
    }


def total(context: WorkerContext, built: dict[str, Any], *, value: torch.Tensor) -> torch.Tensor:
    """`value` times rank + 1, added up over the ranks."""
    built["calls"] += 1
    mine: torch.Tensor = value * (context.rank + 1) * built["factor"]
    dist.all_reduce(mine)
    return mine


def steps(
    context: WorkerContext, built: Any, *, count: int, seconds: float = 0.0, preview: bool = False
) -> dict[str, Any]:
    """A loop that tells its steps; ranks drift apart in time, as they do in life."""
    done = 0
    for done in range(1, count + 1):
        time.sleep(seconds * (1 + context.rank))
        context.step(done, count, {"latent": torch.full((2,), float(done))} if preview else None)
    return {"done": done}


def misbehave(context: WorkerContext, built: Any, *, how: str, rank: int = 1, at: int = 2) -> int:
    """Step along with the others until the worker `rank` does something at step `at`."""
    for done in range(1, 6):
        if context.rank == rank and done == at:
            _misbehave(how)
        dist.all_reduce(torch.ones(1))
        context.step(done, 5)
    return context.rank


def _misbehave(how: str) -> None:
    if how == "raise":
        raise ZeroDivisionError("the worker divided by nothing")
    if how == "refuse":
        raise PlanError("the plan does not fit")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stall":
        time.sleep(600)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)


def chatter(context: WorkerContext, built: Any, *, seconds: float) -> None:
    """Tells a step every few milliseconds, so that the driver never waits for one."""
    give_up, done = time.monotonic() + seconds, 0
    while time.monotonic() < give_up:
        done += 1
        context.step(done, 10**6)
        time.sleep(0.005)


def leave(context: WorkerContext, built: Any, *, status: int) -> None:
    """What a script does that was never meant to be called."""
    sys.exit(status)


def weights_seen(context: WorkerContext, built: Any) -> dict[str, Any]:
    """What the worker sees of the shared weights."""
    weights = _weights(context)
    return {
        "mode": weights.mode,
        "sums": {name: tensor.double().sum().item() for name, tensor in weights.items() if tensor.is_floating_point()},
        "notes": {slot.name: dict(slot.note) for slot in weights.layout.slots},
        "protected_bytes": weights.protected_bytes,
    }


def weights_copied(context: WorkerContext, built: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in _weights(context).items()}


def write_in_place(context: WorkerContext, built: Any, *, name: str, quietly: bool, rank: int = 1) -> int:
    """Bake something into shared weights, the forbidden way."""
    if context.rank == rank:
        tensor = _weights(context)[name]
        (tensor.data if quietly else tensor).zero_()
    dist.all_reduce(torch.ones(1))
    return context.rank


def not_plain(context: WorkerContext, built: Any) -> Any:
    return {"model": torch.nn.Linear(1, 1)}


def _weights(context: WorkerContext) -> OpenWeights:
    assert context.weights is not None
    return context.weights
