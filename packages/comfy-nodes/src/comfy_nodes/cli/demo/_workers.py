"""The demo's model on several processes: the tokens split between Ray workers, the weights in memory once.

This module imports ray-parallel, which is optional; the demo imports it only when its part has its turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from alloc_spec import human_seconds
from comfy_nodes.cli._exit import ExitCode, exits_with
from comfy_nodes.cli._output import dots
from comfy_nodes.cli.demo._model import DemoConfig, DemoTransformer, sample
from comfy_nodes.cli.demo._run import Run, largest_difference
from ray_parallel import ParallelError, Runner, RunResult
from ray_parallel.sequence import (
    Attn,
    Link,
    Plan,
    Region,
    Seq,
    Workload,
    forward_bytes,
    joining_bytes,
    predict,
)
from ray_parallel.workers import GroupOptions, SharingReport

PLAN = Plan(
    regions=[
        Region(
            blocks="blocks",
            args={"x_btc": Seq("image")},
            whole=("cond_bc",),
            out=Seq("image"),
            attn={"": Attn("image", "image")},
        )
    ]
)
"""All that has to be known of the model to split it: its blocks take tokens, which only attention mixes."""

LINK = Link()
"""What the cost model was fitted to: two cards that talk through the host's PCIe slots."""

DEADLINE_SECONDS = 180.0
MIB = 1 << 20


def run_on_workers(checkpoint: Path, config: DemoConfig, reference: Run, *, seed: int, workers: int) -> float:
    """Denoise on CPU workers of a Ray cluster that lives for this run, and print what came out.

    Args:
        checkpoint: the model's safetensors file, which all workers map.
        config: shape of the model.
        reference: the same run in one process.
        seed: seed of the noise.
        workers: how many.

    Returns:
        Largest difference to the reference, relative to the largest value of the latent.

    Raises:
        CommandError: the cluster cannot be started here, or a worker failed.
    """
    steps = len(reference.pass_seconds)
    options = GroupOptions(
        workers=workers,
        device="cpu",
        threads=_threads(workers),
        start_seconds=DEADLINE_SECONDS,
        call_seconds=DEADLINE_SECONDS,
    )
    with exits_with(ExitCode.REFUSED, ParallelError):
        print(f"starting {workers} Ray workers on the CPU, which listen on the loopback address only")
        with Runner(
            f"{__name__}:build", arguments=asdict(config), weights=checkpoint, plan=PLAN, options=options
        ) as runner:
            print_dot = dots(f"{workers} workers")
            result = runner.run(
                loop=f"{__name__}:loop",
                shape=asdict(config),
                steps=steps,
                seed=seed,
                on_step=lambda progress: print_dot(progress.done),
            )
            print(f" {result.seconds:.2f} s")
            sharing = runner.sharing()
    scale = reference.latent.abs().max().item()
    relative = largest_difference(result.latents, reference.latent) / scale
    _report(config, reference, result, sharing, relative, workers)
    return relative


def _report(
    config: DemoConfig, reference: Run, result: RunResult, sharing: SharingReport, relative: float, workers: int
) -> None:
    steps = len(reference.pass_seconds)
    alone, together = human_seconds(reference.steady_seconds), human_seconds(result.seconds / steps)
    print(
        f"\na step takes {together} (threads of each worker: {_threads(workers)}), in one process {alone} "
        f"(threads: {torch.get_num_threads()}); this machine has {os.cpu_count()} cores"
    )
    print(f"sharing: {sharing}")
    work = workload(config, reference.steady_seconds)
    counted = [
        steps * (forward_bytes(work, "ulysses", workers, rank=rank) + joining_bytes(work, workers, rank=rank))
        for rank in range(workers)
    ]
    exact = "exactly as" if counted == list(result.sent_bytes) else f"not the {max(counted) / MIB:.2f} MiB that are"
    print(f"each worker sent up to {max(result.sent_bytes) / MIB:.2f} MiB, {exact} the cost model counts")
    prediction = predict(work, LINK, sequence=workers, kind="ulysses")
    print(
        f"predicted for {workers} devices as fast as one process here, linked by {LINK.bytes_per_second / 1e9:g} GB/s: "
        f"{human_seconds(prediction.seconds)} a step, {prediction.speedup:.2f} x as fast"
    )
    print(f"relative difference to the single process: {relative:.1e}")


def workload(config: DemoConfig, forward_seconds: float) -> Workload:
    """The demo's model as the cost model sees it: one condition, float32."""
    return Workload(
        tokens=config.tokens,
        heads=config.heads,
        head_dim=config.width // config.heads,
        layers=config.blocks,
        forward_seconds=forward_seconds,
        conditions=1,
        element_bytes=torch.float32.itemsize,
    )


def _threads(workers: int) -> int:
    """Threads of a worker, so that all together use the cores that there are."""
    return max(1, (os.cpu_count() or 1) // workers)


def build(**shape: int) -> DemoTransformer:
    """The demo's model in a worker, before it has weights."""
    return DemoTransformer(DemoConfig(**shape))


def loop(
    model: DemoTransformer, step: Callable[..., None], *, shape: dict[str, Any], steps: int, seed: int
) -> torch.Tensor:
    """The demo's denoising loop in a worker."""
    return sample(model, DemoConfig(**shape), steps=steps, seed=seed, after_step=lambda done: step(done, steps))
