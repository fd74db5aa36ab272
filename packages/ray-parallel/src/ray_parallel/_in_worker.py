"""What a `Runner` lets its workers do: build the model around the shared weights, and run a loop."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ray_parallel.sequence import GroupComm, Kind, Parallel, Plan, parallelize
from ray_parallel.sequence.plans import plan_for
from ray_parallel.workers import InvalidRequestError, OpenWeights, WeightsError, WorkerContext, resolve
from ray_parallel.workers.weights._plain import tensor_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a worker holds between runs."""

    model: nn.Module
    parallel: Parallel | None


def build(
    context: WorkerContext,
    *,
    model: str,
    arguments: Mapping[str, Any],
    plan: str | None,
    kind: Kind,
    ulysses: int | None,
    canary: bool,
) -> Built:
    """Build the model in a worker from the shared weights, and put its plan on it."""
    if context.weights is None:
        raise InvalidRequestError("the group has no shared weights; give its recipe some")
    built = model_from(context.weights, resolve(model), arguments).to(context.device)
    if context.size == 1:
        return Built(model=built, parallel=None)
    if plan is None:
        known = plan_for(built)
        chosen, kernels = known.plan, known.kernels
    else:
        chosen, kernels = Plan.from_json(plan), {}
    parallel = parallelize(built, chosen, GroupComm(), kind=kind, ulysses=ulysses, kernels=kernels, canary=canary)
    return Built(model=built, parallel=parallel)


def model_from(weights: OpenWeights, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    """Build a model whose parameters are the shared tensors; memory for others is not even asked for.

    Raises:
        WeightsError: the weights are of another model, or the model keeps tensors that neither its constructor nor the
            weights fill.
    """
    with _EmptyOnMeta():
        built: nn.Module = factory(**arguments)
    weights.load_into(built)
    tensors = (*built.named_parameters(), *built.named_buffers())
    unfilled = [name for name, tensor in tensors if tensor.is_meta]
    if unfilled:
        raise WeightsError(
            type(built).__name__,
            f"keeps {', '.join(unfilled)}, which its constructor leaves empty and the weights do not have",
            "name a function that builds the model and fills them",
        )
    return built.eval().requires_grad_(False)


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters that wait for their weights take no memory: ``torch.empty`` gives a tensor without storage.

    Everything else is computed as usual, above all the buffers that a checkpoint does not hold.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def sample(context: WorkerContext, built: Built, *, loop: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Run a loop in a worker; rank 0 returns the latents, all return a digest of theirs."""
    sent_before = _sent_bytes(built.parallel)
    began = time.perf_counter()
    with torch.no_grad():
        latents: torch.Tensor = resolve(loop)(built.model, context.step, **_moved(arguments, context.device))
    data = latents.detach().cpu().contiguous()
    return {
        "latents": data if context.rank == 0 else None,
        "digest": hashlib.blake2b(tensor_bytes(data).numpy().tobytes(), digest_size=16).hexdigest(),
        "seconds": time.perf_counter() - began,
        "sent_bytes": _sent_bytes(built.parallel) - sent_before,
    }


def _sent_bytes(parallel: Parallel | None) -> int:
    """What this worker has sent for the model, the trial of its plan left out."""
    return 0 if parallel is None else parallel.mesh.sent_bytes - parallel.trial_bytes


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return type(value)(_moved(item, device) for item in value)  # type: ignore[call-arg]
    return value
