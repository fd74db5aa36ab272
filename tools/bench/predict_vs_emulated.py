"""The predictor against the engine on an emulated link, over a grid. One process, one table.

Usage: python tools/bench/predict_vs_emulated.py [--blocks 8] [--windows 10] [--tolerance 10]

A stack of blocks of 2 MiB, each computing for 5 ms by the clock, is planned by `plan`, predicted by `predict` and run
by `place` on links that deliver a block in half of that time to four times. The prediction knows the pass time with
every weight resident, measured in turns with the placed model, and nothing else. A time is the shortest average over
4 passes (a pass may repeat only after two or four) of several windows. The last line is the largest error; the
exit code is 1 when it is above the tolerance. Run it on a quiet machine: what another program takes from the processor
is nothing that the predictor could know.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import platform
import sys
import time
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor, nn

from block_discovery import discover
from device_placement import Device, EmulatedBackend, Hardware, Link, Policy, place, plan, predict

TENSORS_A_BLOCK = 4
ROWS = 256
COLUMNS = 512
COMPUTE_SECONDS = 0.005
BLOCK_BYTES = TENSORS_A_BLOCK * ROWS * COLUMNS * 4
COMPUTE = "emulated:0"
DONOR = "emulated:1"
PASSES = 4

COPY_RATIOS = (0.5, 1.0, 2.0, 4.0)
"""Time to copy a block over the time to compute it."""

STREAMED = (0.5, 1.0)
"""Share of the model that lives on the donor."""


class Block(nn.Module):
    """Four weights, and a forward that takes its time without using the processor for much of it."""

    def __init__(self) -> None:
        super().__init__()
        for index in range(TENSORS_A_BLOCK):
            self.register_parameter(f"weight{index}", nn.Parameter(torch.randn(ROWS, COLUMNS), requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """[1] to [1], in COMPUTE_SECONDS."""
        end = time.perf_counter() + COMPUTE_SECONDS
        for weight in self._parameters.values():
            assert weight is not None
            x = x + weight[0, 0]
        time.sleep(max(0.0, end - time.perf_counter() - 0.001))
        while time.perf_counter() < end:
            pass
        return x


class Stack(nn.Module):
    """Blocks in a row."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        """[1] to [1]."""
        for block in self.blocks:
            x = block(x)
        return x


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of the grid."""

    policy: Policy
    copy_ratio: float
    streamed: float
    slots: int

    @property
    def link(self) -> Link:
        """A link that needs `copy_ratio` times the compute time for a block."""
        seconds = COMPUTE_SECONDS * self.copy_ratio
        return Link(source=DONOR, target=COMPUTE, gb_per_second=BLOCK_BYTES / seconds / 1e9, latency_seconds=20e-6)


def window_seconds(model: nn.Module) -> float:
    """Average of a pass."""
    x = torch.zeros(1)
    model(x)
    began = time.perf_counter()
    for _ in range(PASSES):
        model(x)
    return (time.perf_counter() - began) / PASSES


def measure(point: Point, blocks: int, windows: int) -> tuple[float, float, float]:
    """Seconds of a pass: all resident, predicted, measured."""
    model, resident_model = Stack(blocks).eval(), Stack(blocks).eval()
    devices = tuple(Device(name=name, total_bytes=1 << 40, free_bytes=1 << 40) for name in (COMPUTE, DONOR))
    hardware = Hardware(compute=COMPUTE, devices=devices, links=(point.link,))
    resident = int(blocks * BLOCK_BYTES * (1 - point.streamed))
    amounts = f"{COMPUTE},{resident}b;{DONOR},*" if resident else f"{DONOR},*"
    made = plan(discover(model), amounts, hardware, policy=point.policy, slots=point.slots)
    with place(model, made, backend=EmulatedBackend([point.link])):
        model(torch.zeros(1))
        turns = [(window_seconds(resident_model), window_seconds(model)) for _ in range(windows)]
    plain = min(seconds for seconds, _ in turns)
    predicted = predict(made, hardware, compute_seconds=plain).seconds
    assert predicted is not None
    return plain, predicted, min(seconds for _, seconds in turns)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=8, help="blocks of the model (8)")
    parser.add_argument("--windows", type=int, default=10, help="windows of 4 passes, the shortest counts (10)")
    parser.add_argument("--tolerance", type=float, default=10.0, help="largest error allowed, in percent (10)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.blocks} blocks of {BLOCK_BYTES >> 20} MiB, {COMPUTE_SECONDS * 1e3:g} ms each")
    print(f"torch {torch.__version__}, {platform.machine()}, {datetime.date.today()}\n")
    print("| policy | link GB/s | streamed | slots | resident ms | predicted ms | measured ms | error |")
    print("|---|---|---|---|---|---|---|---|")
    largest = 0.0
    with torch.no_grad():
        for policy, ratio, streamed, slots in itertools.product(get_args(Policy), COPY_RATIOS, STREAMED, (1, 2, 3)):
            if policy != "stripe" and (slots != 2 or streamed == 1.0):
                continue
            point = Point(policy, ratio, streamed, slots)
            plain, predicted, measured = measure(point, options.blocks, options.windows)
            error = (measured / predicted - 1) * 100
            largest = max(largest, abs(error))
            print(
                f"| {policy} | {point.link.gb_per_second:.2f} | {streamed:.0%} | {slots} | {plain * 1e3:.2f} "
                f"| {predicted * 1e3:.2f} | {measured * 1e3:.2f} | {error:+.1f}% |",
                flush=True,
            )
    print(f"\nlargest error {largest:.1f}% (tolerance {options.tolerance:g}%)")
    return int(largest > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
