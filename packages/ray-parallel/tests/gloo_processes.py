"""Ranks as processes that talk over gloo, started from a process that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from ray_parallel.sequence import GroupComm

# Importing torch, and what it imports when first used, takes seconds: one process does it, and all ranks of all tests
# are forked from that one.
multiprocessing.set_forkserver_preload(["torch.fx.experimental.symbolic_shapes", "pytest", "ray_parallel.sequence"])


def start(function: Callable[..., None], ranks: int, folder: Path, *args: object, timeout_s: float = 240) -> None:
    """Run `function(comm, *args)` in gloo processes that meet in `folder`; any failure is raised here.

    Raises:
        TimeoutError: they were not done in time; they are killed.
        ProcessRaisedException, ProcessExitedException: one of them failed; the others are ended.
    """
    context = start_processes(  # type: ignore[no-untyped-call]
        _rank, (ranks, folder, timeout_s, function, args), ranks, join=False, start_method="forkserver"
    )
    deadline = time.monotonic() + timeout_s
    try:
        while not context.join(1, grace_period=5):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{ranks} ranks were not done after {timeout_s} s")
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()


def _rank(
    rank: int, ranks: int, folder: Path, timeout_s: float, function: Callable[..., None], args: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=timeout_s / 2)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks, timeout=patience)
    function(GroupComm(timeout_s=timeout_s / 2), *args)
    dist.destroy_process_group()
