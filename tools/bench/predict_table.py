"""Policies at equal memory: what the planner chooses and the predictor says, as the table of the documentation.

Usage: python tools/bench/predict_table.py [--slots 2]

Nothing is measured: seconds are predicted from the sizes of real models, an assumed compute time and a link. Every
row gives all policies the same memory for weights on the compute device, slots included. The first columns are
seconds a pass; the others say how many times faster each idea makes it: prefetch over taking turns, interleaving
over one stretch, striping over interleaving, and how far from the bound max(C, D) that ends.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "device-placement" / "tests"))

from placement_table import CASES, Case, bound_of, seconds_of

HEAD = (
    "| model | GB/s | VRAM GB | serial | prefetch | interleave | stripe | bound "
    "| serial / prefetch | prefetch / interleave | interleave / stripe | stripe / bound |"
)


def row(case: Case, slots: int) -> str:
    """One line of the table."""
    serial = seconds_of(case, "contiguous", slots=1, overlap=False)
    prefetch, interleave, stripe = (
        seconds_of(case, policy, slots=slots) for policy in ("contiguous", "interleave", "stripe")
    )
    bound = bound_of(case)
    seconds = " | ".join(f"{value:.3f}" for value in (serial, prefetch, interleave, stripe, bound))
    ratios = " | ".join(
        f"{value:.2f}" for value in (serial / prefetch, prefetch / interleave, interleave / stripe, stripe / bound)
    )
    return f"| {case.name} | {case.gb_per_second:g} | {case.vram_gb} | {seconds} | {ratios} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=2, help="streaming buffers of the policies that prefetch (2)")
    slots = parser.parse_args().slots
    print(HEAD)
    print("|" + "---|" * HEAD.count(" | ") + "---|")
    for case in CASES:
        print(row(case, slots))


if __name__ == "__main__":
    main()
