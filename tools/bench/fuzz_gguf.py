"""Damage GGUF files a million times and use whatever the reader still accepts; print what came of it.

Usage: python tools/bench/fuzz_gguf.py [--mutations 1000000] [--seed 1] [--file vocabulary.gguf]

The run fails at the first outcome that is neither an error of ours nor a usable file, keeps that file, and names it.
The slowest mutation (processor time) and the peak of memory are printed against the bounds of 50 ms and 64 MiB.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "gguf-loader" / "tests"))

import gguf_bytes
from gguf_mutations import mutate

from gguf_loader import GgufArray, GgufError, open_gguf


def use(path: Path) -> str:
    """Open a file and read all of it; returns the class of the complaint, or `accepted`."""
    try:
        file = open_gguf(path)
        for value in file.header.metadata.values():
            if isinstance(value, GgufArray):
                value.tolist()
        for name in file.header.tensors:
            int(file.tensor_bytes(name)[-1])
    except GgufError as error:
        return type(error).__name__
    return "accepted"


def run(mutations: int, seed: int, sources: list[bytes]) -> tuple[Counter[str], float]:
    """Mutate, open and read; returns the outcomes and the processor seconds of the slowest."""
    rng = random.Random(seed)
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "mutated.gguf"
        for index in range(mutations):
            data = mutate(rng.choice(sources), rng)
            path.write_bytes(data)
            start = time.process_time()
            try:
                outcomes[use(path)] += 1
            except BaseException:
                kept = Path(tempfile.gettempdir()) / f"gguf-fuzz-{seed}-{index}.gguf"
                kept.write_bytes(data)
                print(f"mutation {index} of seed {seed} is kept in {kept}", file=sys.stderr)
                raise
            slowest = max(slowest, time.process_time() - start)
    return outcomes, slowest


def main() -> None:
    """Parse the command line, run, print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--file", type=Path, action="append", default=[], help="a real file to damage as well")
    arguments = parser.parse_args()
    sources = [gguf_bytes.rich().bytes(), *(path.read_bytes() for path in arguments.file)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    outcomes, slowest = run(arguments.mutations, arguments.seed, sources)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, count in outcomes.most_common():
        print(f"{name:<22}{count:>10}")
    print(f"{'slowest':<22}{slowest * 1e3:>10.1f} ms (bound: 50)")
    print(f"{'memory':<22}{(after - before) / 1024:>10.1f} MiB above the start (bound: 64)")
    print(f"{'in all':<22}{seconds:>10.0f} s")


if __name__ == "__main__":
    main()
