"""How long a group of workers takes to be there: the first start, a restart, and recovery from a killed worker.

Usage: python tools/bench/worker_restart.py [--workers 2] [--repeats 3]      (Linux only)

The peer is what an application does without supervision: end the cluster and start everything again. Ours keeps the
cluster and starts a new generation of processes, process group and model. Recovery is measured from kill -9 of one
worker during a call: until the error is raised, and until the next call has answered.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from bench_tasks import TinyModel
from safetensors.torch import save_file

from ray_parallel.workers import GroupOptions, Recipe, SharedWeights, WorkerDiedError, WorkerGroup, start_cluster


def everything(recipe: Recipe, options: GroupOptions) -> tuple[float, float]:
    """(seconds of start_cluster, seconds until the first call answered) from nothing."""
    began = time.perf_counter()
    with start_cluster(workers=options.workers) as cluster, WorkerGroup(cluster, recipe, options) as group:
        there = time.perf_counter()
        group.call("bench_tasks:nothing")
        return there - began, time.perf_counter() - began


def recovery(group: WorkerGroup) -> tuple[float, float]:
    """(seconds from kill -9 to the error, seconds from there to the answer of the next call)."""
    victim = group.call("bench_tasks:pid")[-1]
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.perf_counter())
        os.kill(victim, signal.SIGKILL)

    threading.Timer(0.5, kill).start()
    try:
        group.call("bench_tasks:waiting_steps", {"seconds": 60.0})
    except WorkerDiedError:
        noticed = time.perf_counter()
    group.call("bench_tasks:nothing")
    return noticed - killed[0], time.perf_counter() - noticed


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print one table of minima."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    print(
        f"{today}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; minima of {options.repeats}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(TinyModel().state_dict(), path)
        recipe = Recipe(factory="bench_tasks:build", weights=SharedWeights.from_file(path))
        group_options = GroupOptions(workers=options.workers, device="cpu")
        starts = [everything(recipe, group_options) for _ in range(options.repeats)]
        restarts, recoveries = [], []
        with start_cluster(workers=options.workers) as cluster, WorkerGroup(cluster, recipe, group_options) as group:
            group.start()
            for _ in range(options.repeats):
                began = time.perf_counter()
                group.restart()
                restarts.append(time.perf_counter() - began)
                recoveries.append(recovery(group))
    whole = min(seconds for _, seconds in starts)
    rows = [
        ("peer: end and start everything, to the first answer", whole),
        ("  of it the cluster", min(seconds for seconds, _ in starts)),
        ("ours: a new generation of the group", min(restarts)),
        ("ours: kill -9 of a worker, until the error", min(noticed for noticed, _ in recoveries)),
        ("ours: from the error to the next answer", min(seconds for _, seconds in recoveries)),
    ]
    for name, seconds in rows:
        print(f"{name:<54}{seconds:>8.2f} s{whole / seconds:>8.1f}x")


if __name__ == "__main__":
    main()
