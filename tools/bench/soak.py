"""Mix the operations of all packages for a long time; fail when a value is wrong or something grows.

Usage: python tools/bench/soak.py [--minutes 30] [--seed 1] [--without-host] [--without-ray]

The seed draws operations from `soak_operations.py` and, where a ComfyUI checkout is, from `soak_host.py` in a second
process with simulated devices. Each checks its own result; the first wrong one ends the run. Memory, handles, threads,
child processes and files are sampled all the time. After a third of the time everything has been used at least once;
from then on nothing may grow.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from soak_operation import Operation

MEMORY_LIMIT = 48 << 20
"""Bytes that the resident memory may differ by between the second and the last third: allocators keep what they had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What this process holds at one moment; bytes and counts."""

    memory: int
    handles: int
    threads: int
    children: int
    files: int

    @classmethod
    def take(cls, folder: Path) -> Sample:
        """Count, after a collection."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        processes = [path for path in Path("/proc").iterdir() if path.name.isdigit()]
        shared = list(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else []
        return cls(
            memory=pages * os.sysconf("SC_PAGE_SIZE"),
            handles=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            threads=threading.active_count(),
            children=sum(_parent(path / "stat") == os.getpid() for path in processes),
            files=sum(1 for _ in folder.rglob("*")) + len(shared),
        )


def _parent(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None  # it ended in between


def growth(samples: Sequence[Sample]) -> dict[str, tuple[int, int]]:
    """What was more in the last third than in the second: name -> (before, after); medians.

    >>> flat = [Sample(memory=1, handles=3, threads=1, children=0, files=0)] * 9
    >>> growth(flat), growth([*flat[:6], *[Sample(memory=1, handles=4, threads=1, children=0, files=0)] * 3])
    ({}, {'handles': (3, 4)})
    """
    third = len(samples) // 3
    grown = {}
    for field in fields(Sample):
        before, after = (
            int(median(getattr(sample, field.name) for sample in part))
            for part in (samples[third : 2 * third], samples[2 * third :])
        )
        if after > before + (MEMORY_LIMIT if field.name == "memory" else 0):
            grown[field.name] = (before, after)
    return grown


def soak(
    operations: Sequence[Operation], *, seconds: float, seed: int, folder: Path
) -> tuple[Counter[tuple[str, str]], list[Sample]]:
    """Draw and run operations until the time is over.

    Every operation runs once before the first is drawn.

    Returns:
        how often each operation came to each outcome, and the samples.
    """
    rng = random.Random(seed)
    counts: Counter[tuple[str, str]] = Counter()
    samples: list[Sample] = []
    started = sampled = time.monotonic()
    first = list(operations)
    while (now := time.monotonic()) - started < seconds or first:
        operation = first.pop() if first else rng.choices(operations, [each.weight for each in operations])[0]
        state = rng.getstate()
        with tempfile.TemporaryDirectory(dir=folder) as work:
            try:
                counts[operation.name, operation.run(rng, Path(work))] += 1
            except BaseException:
                print(
                    f"{operation.name} failed after {sum(counts.values())} operations of seed {seed}", file=sys.stderr
                )
                print(f"state of the generator: {hash(state):x}", file=sys.stderr)
                raise
        if now - sampled >= max(0.5, seconds / 300):
            samples.append(Sample.take(folder))
            sampled = now
    samples.append(Sample.take(folder))
    return counts, samples


def report(counts: Mapping[tuple[str, str], int], samples: Sequence[Sample]) -> int:
    """Print the table; returns the exit code."""
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:<22}{outcome:<34}{count:>9}")
    print(f"{'in all':<56}{sum(counts.values()):>9}")
    for field in fields(Sample):
        values = [getattr(sample, field.name) for sample in samples]
        unit, scale = ("MiB", 1 << 20) if field.name == "memory" else ("", 1)
        print(
            f"{field.name:<10} first {values[0] // scale} last {values[-1] // scale} most {max(values) // scale} {unit}"
        )
    if len(samples) < 9:
        print("too short to see growth: give at least a minute")
        return 0
    grown = growth(samples)
    for name, (before, after) in grown.items():
        print(f"GROWN: {name} from {before} to {after} (medians of the second and the last third)")
    return 1 if grown else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print; the host runs in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--without-host", action="store_true", help="leave ComfyUI out although a checkout is there")
    parser.add_argument("--without-ray", action="store_true", help="start no Ray cluster")
    given = parser.parse_args(arguments)
    import soak_operations

    from get_comfyui import find_comfyui

    host: subprocess.Popen[bytes] | None = None
    if not given.without_host and find_comfyui() is not None:
        command = [sys.executable, str(Path(__file__).with_name("soak_host.py"))]
        command += ["--minutes", str(given.minutes), "--seed", str(given.seed)]
        host = subprocess.Popen(command)
    print(
        f"{platform.node()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, ", end=""
    )
    print(f"seed {given.seed}, {given.minutes:g} minutes, {'with' if host else 'without'} ComfyUI", flush=True)
    operations = soak_operations.operations(ray=not given.without_ray)
    try:
        with tempfile.TemporaryDirectory() as folder:
            counts, samples = soak(operations, seconds=60 * given.minutes, seed=given.seed, folder=Path(folder))
        code = host.wait() if host is not None else 0
    finally:
        if host is not None and host.poll() is None:
            host.terminate()
            host.wait()
    return report(counts, samples) or code


if __name__ == "__main__":
    raise SystemExit(main())
