"""How soon progress reaches the caller, and how soon a cancellation stops all workers.

Usage: python tools/bench/progress_latency.py [--workers 2] [--steps 200]      (one machine: it compares one clock)

The peer is the way without a stream: the workers leave their progress in an actor that the caller asks every 50 ms, as
progress bars often do. Ours is the stream of a call. Latency is from the moment at which rank 0 reports a step to the
moment at which the caller's function sees it; cancelling is from `cancel()` to the return of the call, at steps of
10 ms, all workers still ready.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch

from ray_parallel.workers import CancelledError, Cluster, GroupOptions, Progress, WorkerGroup, start_cluster

POLL_SECONDS = 0.05


class Board:
    """Where the peer's worker leaves its progress."""

    def __init__(self) -> None:
        self.told: list[float] = []

    def tell(self, moment: float) -> None:
        """Leave a moment."""
        self.told.append(moment)

    def ask(self, after: int) -> list[float]:
        """What was left since."""
        return self.told[after:]


def steps_to_board(board: Any, count: int, pause: float) -> None:
    """The peer's worker."""
    for _ in range(count):
        time.sleep(pause)
        board.tell.remote(time.monotonic())


def polled(count: int, pause: float) -> list[float]:
    """Latencies of the peer."""
    import ray

    untyped: Any = ray
    board = untyped.remote(num_cpus=0)(Board).remote()
    untyped.get(board.ask.remote(0))
    running = untyped.remote(num_cpus=0)(steps_to_board).remote(board, count, pause)
    latencies: list[float] = []
    while len(latencies) < count:
        time.sleep(POLL_SECONDS)
        seen = untyped.get(board.ask.remote(len(latencies)))
        latencies += [time.monotonic() - moment for moment in seen]
    untyped.get(running)
    return latencies


def streamed(group: WorkerGroup, count: int, pause: float) -> list[float]:
    """Latencies of ours."""
    latencies: list[float] = []

    def on_step(progress: Progress) -> None:
        latencies.append(time.monotonic() - progress.preview)

    group.call("bench_tasks:clocked_steps", {"count": count, "pause": pause}, on_step=on_step)
    return latencies


def cancelled(group: WorkerGroup) -> float:
    """Seconds from cancelling to the end of the call."""
    moments: list[float] = []

    def cancel() -> None:
        moments.append(time.monotonic())
        group.cancel()

    threading.Timer(0.5, cancel).start()
    try:
        group.call("bench_tasks:waiting_steps", {"seconds": 60.0})
    except CancelledError:
        return time.monotonic() - moments[0]
    raise SystemExit("the call was not cancelled")


def measure(cluster: Cluster, workers: int, steps: int) -> None:
    """Print the table."""
    with WorkerGroup(cluster, options=GroupOptions(workers=workers, device="cpu")) as group:
        streamed(group, 5, 0.02)
        ours, stops = streamed(group, steps, 0.02), [cancelled(group) for _ in range(5)]
    peer = polled(steps, 0.02)
    print(f"{'':<40}{'median ms':>11}{'99 % ms':>10}{'ratio':>8}")
    first = statistics.median(peer)
    for name, found in (("peer: asking an actor every 50 ms", peer), ("ours: the stream of the call", ours)):
        median, worst = statistics.median(found), sorted(found)[int(0.99 * (len(found) - 1))]
        print(f"{name:<40}{1000 * median:>11.2f}{1000 * worst:>10.2f}{first / median:>7.1f}x")
    stop, longest = 1000 * statistics.median(stops), 1000 * max(stops)
    print(f"{'ours: cancelling, all workers stopped':<40}{stop:>11.2f}{longest:>10.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    print(
        f"{today}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {options.workers} workers"
    )
    with start_cluster(workers=options.workers) as cluster:
        measure(cluster, options.workers, options.steps)


if __name__ == "__main__":
    main()
