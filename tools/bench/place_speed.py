"""How fast a model is placed, against cloning the same tensors, and how much memory that takes at its peak.

Usage: python tools/bench/place_speed.py [--gib 2] [--blocks 16] [--repeats 3]

Each measurement runs in a separate process, so that its peak is its own: build the model, note the resident set,
then clone every tensor one after the other (dropping each clone as the next is made, and keeping all of them), or place
the model with every block on a donor of the emulated backend, which allocates new memory and copies into it.
Peak memory is what the process's high-water mark rose by, in units of the model; place() should need two blocks of it,
since what a block held is given back as soon as its bytes are in their new home, and the two slots of the engine are
two more. What a process does once (imports, threads) is done on a tiny model before; the last line says how long that
first place() took, and the table is without it.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from device_placement import EmulatedBackend, Link, PlacementPlan, TensorHome, UnitPlacement, place

TENSORS_A_BLOCK = 6
COMPUTE = "cpu"
DONOR = "donor:0"


def build(model_bytes: int, blocks: int) -> nn.ModuleList:
    """Blocks of equal square layers without bias, every page of them written."""
    width = int((model_bytes / blocks / TENSORS_A_BLOCK / 4) ** 0.5) // 16 * 16
    layers = (
        nn.Sequential(*(nn.Linear(width, width, bias=False, device="meta") for _ in range(TENSORS_A_BLOCK)))
        for _ in range(blocks)
    )
    model = nn.ModuleList(layers).to_empty(device="cpu").requires_grad_(False)
    for tensor in model.parameters():
        tensor.fill_(1.0)
    return model


def plan_of(model: nn.ModuleList) -> PlacementPlan:
    """Every block on the donor."""
    units = tuple(
        UnitPlacement(
            path=str(index),
            class_name="Sequential",
            kind="block",
            homes=tuple(
                TensorHome(name=f"{index}.{name}", size_bytes=tensor.numel() * 4, device=DONOR)
                for name, tensor in block.named_parameters()
            ),
        )
        for index, block in enumerate(model)
    )
    return PlacementPlan(compute=COMPUTE, donors=(DONOR,), policy="stripe", slots=2, units=units)


def clone_each(model: nn.ModuleList) -> None:
    """Clone every tensor, one after the other."""
    for tensor in model.parameters():
        tensor.clone()


def clone_all(model: nn.ModuleList) -> None:
    """Clone every tensor and keep the clones, as a copy of the model does."""
    clones = [tensor.clone() for tensor in model.parameters()]
    assert len(clones) == len(model) * TENSORS_A_BLOCK


def place_all(model: nn.ModuleList) -> None:
    """Place the model; slots and the start of the stream included."""
    link = Link(source=DONOR, target=COMPUTE, gb_per_second=1000.0, latency_seconds=0.0)
    place(model, plan_of(model), backend=EmulatedBackend([link]))


WAYS: dict[str, Callable[[nn.ModuleList], None]] = {
    "clone each tensor": clone_each,
    "clone the model": clone_all,
    "place()": place_all,
}


def status_bytes(field: str) -> int:
    """A field of this process's memory status (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not report {field}; this benchmark needs Linux")


def measure(way: str, model_bytes: int, blocks: int) -> tuple[float, int, int, float]:
    """Bytes a second, peak growth in bytes, bytes of a block, seconds of a first try on a tiny model.

    To be called once in a process.
    """
    began = time.perf_counter()
    WAYS[way](build(1 << 20, 2))
    first_seconds = time.perf_counter() - began
    model = build(model_bytes, blocks)
    size_bytes = sum(tensor.numel() * 4 for tensor in model.parameters())
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark back to what is resident
    before = status_bytes("VmRSS")
    began = time.perf_counter()
    WAYS[way](model)
    seconds = time.perf_counter() - began
    return size_bytes / seconds, status_bytes("VmHWM") - before, size_bytes // blocks, first_seconds


def in_process(way: str, options: argparse.Namespace) -> tuple[float, int, int, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--gib", str(options.gib), "--blocks", str(options.blocks)]
    speed, peak, block, first = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return speed, peak, block, first


def main() -> None:
    """Print the table, or one measurement for it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the model in GiB (2)")
    parser.add_argument("--blocks", type=int, default=16, help="blocks of the model (16)")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each row, taking turns (3)")
    parser.add_argument("--way", choices=WAYS, help="measure one row once in this process and print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model_bytes = int(options.gib * (1 << 30))
    if options.way:
        print(json.dumps(measure(options.way, model_bytes, options.blocks)))
        return
    shape = f"{options.gib:g} GiB in {options.blocks} blocks of {TENSORS_A_BLOCK} tensors"
    print(f"{shape}, 1 thread; best of {options.repeats}")
    print(f"torch {torch.__version__}, {platform.machine()}, {datetime.date.today()}\n")
    results = [{way: in_process(way, options) for way in WAYS} for _ in range(options.repeats)]
    reference = max(turn["clone the model"][0] for turn in results)
    print("| way | GB/s | ratio to cloning the model | peak growth, MiB | in blocks |")
    print("|---|---|---|---|---|")
    for way in WAYS:
        speed = max(turn[way][0] for turn in results)
        peak = statistics.median(turn[way][1] for turn in results)
        block = results[0][way][2]
        print(f"| {way} | {speed / 1e9:.2f} | {speed / reference:.2f} | {peak / (1 << 20):.0f} | {peak / block:.2f} |")
    print(f"\nfirst place() of a process, tiny model: {min(turn['place()'][3] for turn in results):.2f} s")


if __name__ == "__main__":
    main()
