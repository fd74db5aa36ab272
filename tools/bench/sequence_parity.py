"""How far several ranks are from one process, for every known architecture: the table of ray-parallel's README.

Run `uv run python tools/bench/sequence_parity.py` (`--host diffusers` or `--host comfyui` for one of them,
`--ranks 2 3` for other rank counts, `--case Flux` for some of the cases). Each case of the parity suite, a real model
class with tiny random weights in fp32, is run in one process and on threads, in every kind of attention; the numbers
are the largest difference of any case of an architecture, relative to the largest value of its result. ComfyUI's
classes need a checkout (COMFYUI_PATH or ~/.cache/torchspan/ComfyUI).
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "ray-parallel" / "tests"))

import sequence_ranks
import torch
from sequence_tiny import Case

from ray_parallel.sequence import Kind
from ray_parallel.sequence.plans import REFUSED, plan_for

HOSTS = {"comfyui": ("sequence_comfy_video", "sequence_comfy_image"), "diffusers": ("sequence_diffusers",)}
KINDS: tuple[Kind, ...] = ("ulysses", "ring", "all_gather", "usp")


def cases_of(host: str) -> list[Case]:
    """The cases of the parity suite for one host."""
    return [case for module in HOSTS[host] for case in importlib.import_module(module).CASES]


def worst(cases: Iterable[Case], kind: Kind, ranks: Iterable[int]) -> float:
    """Largest difference of any of the cases on any number of ranks."""
    counts = [count for count in ranks if kind != "usp" or (count > 2 and count % 2 == 0)]
    differences = []
    for case in cases:
        built = case.build()
        entry = plan_for(built[0])
        differences += [sequence_ranks.on_threads(built, entry, count, kind).difference for count in counts]
    return max(differences, default=0.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and what is refused; 1 when a difference is larger than the suite allows."""
    parser = argparse.ArgumentParser(description="Compare every known architecture on several ranks with one process.")
    parser.add_argument("--host", choices=sorted(HOSTS), nargs="+", default=list(HOSTS), help="default: both")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4], help="rank counts (default: 2 3 4)")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    given = parser.parse_args(arguments)
    print(f"{platform.machine()}, torch {torch.__version__}, {date.today()}; {given.ranks} ranks as threads, fp32\n")
    print("| host | architecture | cases | Ulysses | ring | all-gather | USP |\n|---|---|---|---|---|---|---|")
    largest = 0.0
    for host in given.host:
        cases = [case for case in cases_of(host) if given.case.lower() in case.name.lower()]
        for architecture in dict.fromkeys(case.architecture for case in cases):
            ours = [case for case in cases if case.architecture == architecture]
            found = [worst(ours, kind, given.ranks) for kind in KINDS]
            largest = max(largest, *found)
            shown = "; ".join(case.name.partition(": ")[2] for case in ours)
            numbers = " | ".join(f"{difference:.1e}" for difference in found)
            print(f"| {host} | {architecture} | {shown} | {numbers} |", flush=True)
    print("\nRefused:", *(f"- {model}: {reason}" for model, reason in REFUSED.items()), sep="\n")
    print(f"\nlargest difference {largest:.1e}, allowed {sequence_ranks.LIMIT:.0e}")
    return int(largest > sequence_ranks.LIMIT)


if __name__ == "__main__":
    sys.exit(main())
