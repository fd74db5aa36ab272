"""`run` and `Runner`: a denoising loop on several workers, with one copy of the weights and the tokens split."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from ray_parallel.sequence import Kind, Plan
from ray_parallel.workers import (
    Cluster,
    GroupOptions,
    Progress,
    RanksDisagreeError,
    Recipe,
    SharedWeights,
    SharingReport,
    WorkerGroup,
    start_cluster,
)
from ray_parallel.workers.group._names import require_name

_IN_WORKER = "ray_parallel._in_worker"
FLOW_EULER = "ray_parallel._loop:flow_euler"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run gave.

    Attributes:
        latents: what the loop returned.
        seconds: duration of the loop, as the slowest worker measured it; loading is not in it.
        sent_bytes: bytes that each worker sent to others for the model, by rank; the trial of a plan is not counted.
    """

    latents: torch.Tensor
    seconds: float
    sent_bytes: tuple[int, ...]


class Runner:
    """A model on several workers, loaded once and run as often as you like.

    Args:
        model: ``"package.module:name"`` of a class or function that builds the model, such as
            ``"diffusers:FluxTransformer2DModel"``; each worker imports it.
        arguments: its arguments; plain data.
        weights: a safetensors file, the index of a sharded one, or tensors by name. A file is the better way.
        plan: how the model's tokens are split; None takes the plan that is known for its class.
        kind: how attention is exchanged: "ulysses", "ring", "usp" or "all_gather".
        ulysses: for "usp", how many neighbours exchange heads.
        canary: whether a plan is tried before its first use, on the inputs of the first step and a copy of the model in
            fp32 with two blocks of each list; None tries plans given by hand, as those of known classes are tested.
        options: workers, devices and deadlines.
        cluster: where they run; None starts a cluster of this machine, and ends it with the runner.

    Raises:
        InvalidRequestError: the model is not named, or an argument is not plain data.
        WeightsError: the file is no checkpoint.
        ObjectStoreSizeError: tensors do not fit into the object store.
        ClusterError: no cluster can be started here.
    """

    def __init__(
        self,
        model: str,
        *,
        weights: str | os.PathLike[str] | Mapping[str, torch.Tensor],
        arguments: Mapping[str, Any] | None = None,
        plan: Plan | None = None,
        kind: Kind = "ulysses",
        ulysses: int | None = None,
        canary: bool | None = None,
        options: GroupOptions | None = None,
        cluster: Cluster | None = None,
    ) -> None:
        options = options or GroupOptions()
        recipe = Recipe(
            factory=f"{_IN_WORKER}:build",
            arguments={
                "model": model,
                "arguments": dict(arguments or {}),
                "plan": None if plan is None else plan.to_json(),
                "kind": kind,
                "ulysses": ulysses,
                "canary": plan is not None if canary is None else canary,
            },
        )
        require_name(model, "model")
        with ExitStack() as stack:
            # A file is looked at before a cluster is started; tensors need one whose store holds them.
            shared = None if isinstance(weights, Mapping) else SharedWeights.from_file(weights)
            size = sum(tensor.nbytes for tensor in weights.values()) if isinstance(weights, Mapping) else 0
            if cluster is None:
                cluster = stack.enter_context(
                    start_cluster(workers=options.workers, shared_bytes=size, start_seconds=options.start_seconds)
                )
            if isinstance(weights, Mapping):
                shared = stack.enter_context(SharedWeights.from_tensors(weights, room=cluster.room))
            self.group = stack.enter_context(WorkerGroup(cluster, replace(recipe, weights=shared), options))
            self._resources = stack.pop_all()

    def run(
        self,
        *,
        loop: str = FLOW_EULER,
        on_step: Callable[[Progress], None] | None = None,
        **arguments: Any,
    ) -> RunResult:
        """Run a denoising loop once.

        Args:
            loop: ``"package.module:function"``, called as ``function(model, step, **arguments)`` on every worker;
                `flow_euler` by default. It calls ``step(done, of, preview)`` after each step, on all workers alike.
            on_step: called with the progress; when it raises, all workers stop after the same step.
            arguments: of the loop; tensors are moved to each worker's device.

        Raises:
            WorkerFailure: a worker raised, died or was late; the next run starts new workers.
            RanksDisagreeError: the workers came to different results, so none is given.
        """
        answers = self.group.call(f"{_IN_WORKER}:sample", {"loop": loop, "arguments": arguments}, on_step=on_step)
        differing = [rank for rank, answer in enumerate(answers) if answer["digest"] != answers[0]["digest"]]
        if differing:
            raise RanksDisagreeError(differing)
        return RunResult(
            latents=answers[0]["latents"],
            seconds=max(answer["seconds"] for answer in answers),
            sent_bytes=tuple(answer["sent_bytes"] for answer in answers),
        )

    def sharing(self) -> SharingReport:
        """Measure how the workers share the weights."""
        return self.group.sharing()

    def close(self) -> None:
        """End the workers, and the cluster if it was started for this runner."""
        self._resources.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(
    model: str,
    *,
    weights: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    model_arguments: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    kind: Kind = "ulysses",
    ulysses: int | None = None,
    canary: bool | None = None,
    options: GroupOptions | None = None,
    cluster: Cluster | None = None,
    loop: str = FLOW_EULER,
    on_step: Callable[[Progress], None] | None = None,
    **arguments: Any,
) -> RunResult:
    """Load a model on several workers, run a denoising loop once, and end everything.

    Args:
        model: see `Runner`, as `weights`, `plan`, `kind`, `ulysses`, `canary`, `options` and `cluster`.
        weights: see there.
        model_arguments: what the model is built with; `arguments` of `Runner`.
        plan: see there.
        kind: see there.
        ulysses: see there.
        canary: see there.
        options: see there.
        cluster: see there.
        loop: see `Runner.run`, as `on_step` and `arguments`.
        on_step: see there.
        arguments: see there.

    Raises:
        ParallelError: as `Runner` and `Runner.run`.
    """
    with Runner(
        model,
        arguments=model_arguments,
        weights=weights,
        plan=plan,
        kind=kind,
        ulysses=ulysses,
        canary=canary,
        options=options,
        cluster=cluster,
    ) as runner:
        return runner.run(loop=loop, on_step=on_step, **arguments)
