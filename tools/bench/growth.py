"""How the cost of planning and placing grows with the model: seconds by units, and the exponent between the sizes.

Usage: python tools/bench/growth.py [--units 1000 2000 5000 10000] [--tensors 100000]

Bounds: 10,000 units are planned in 0.5 s and placed in 2 s beside the copying; a header of 100,000 tensors is
discovered and planned in 2 s; every exponent is about 1. A unit holds little, so that copying takes no time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from block_discovery import BlockTree, discover, discover_file
from device_placement import (
    Device,
    EmulatedBackend,
    Hardware,
    Link,
    PlacementPlan,
    place,
    plan,
    predict,
)

SPEC = "card:0,30%;cpu,*"
GIB = 1 << 30


def machine() -> Hardware:
    """One card and the host, with room for everything."""
    return Hardware(
        compute="card:0",
        devices=tuple(Device(name=name, total_bytes=512 * GIB, free_bytes=512 * GIB) for name in ("card:0", "cpu")),
        links=(Link(source="cpu", target="card:0", gb_per_second=50.0),),
    )


def of_model(units: int) -> dict[str, float]:
    """Seconds of each step with a model of so many units."""
    hardware = machine()
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(units))).eval()
    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = step()
        seconds[name] = time.perf_counter() - began
        return result

    tree = timed("discover", lambda: discover(model))
    text = timed("tree to JSON", tree.to_json)
    timed("tree from JSON", lambda: BlockTree.from_json(text))
    timed("plan, stripe", lambda: plan(tree, SPEC, hardware))
    timed("plan, interleave", lambda: plan(tree, SPEC, hardware, policy="interleave"))
    timed("plan, contiguous", lambda: plan(tree, SPEC, hardware, policy="contiguous"))
    made = plan(tree, SPEC, hardware)
    timed("predict", lambda: predict(made, hardware, compute_seconds=1.0))
    text = timed("plan to JSON", made.to_json)
    timed("plan from JSON", lambda: PlacementPlan.from_json(text))
    handle = timed("place", lambda: place(model, made, backend=EmulatedBackend(hardware.links)))
    timed("remove", handle.remove)
    return seconds


def of_header(tensors: int, folder: Path) -> dict[str, float]:
    """Seconds to discover and plan a file of so many tensors; no weight is there to be read."""
    path = folder / "model.safetensors"
    header = {
        f"blocks.{index // 4}.{name}.weight": {
            "dtype": "BF16",
            "shape": [8, 8],
            "data_offsets": [128 * index, 128 * index + 128],
        }
        for index, name in zip(range(tensors), "qkvo" * tensors, strict=False)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 128 * tensors)
    began = time.perf_counter()
    tree = discover_file(path)
    discovered = time.perf_counter()
    plan(tree, SPEC, machine())
    return {"header: discover": discovered - began, "header: plan": time.perf_counter() - discovered}


def exponent(smaller: tuple[int, float], larger: tuple[int, float]) -> float:
    """How fast a cost grows: 1 is linear, 2 quadratic.

    >>> exponent((10, 1.0), (100, 100.0))
    2.0
    """
    return math.log(larger[1] / smaller[1]) / math.log(larger[0] / smaller[0])


def table(sizes: Sequence[int], measure: Callable[[int], dict[str, float]]) -> None:
    """Print seconds by size, and the exponent from the first to the last size."""
    columns = [measure(size) for size in sizes]
    print(f"{'':<20}" + "".join(f"{size:>10}" for size in sizes) + f"{'exponent':>10}")
    for name in columns[0]:
        seconds = [column[name] for column in columns]
        growth = exponent((sizes[0], seconds[0]), (sizes[-1], seconds[-1])) if len(sizes) > 1 else math.nan
        print(f"{name:<20}" + "".join(f"{value:>10.3f}" for value in seconds) + f"{growth:>10.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs="+", default=[1000, 2000, 5000, 10_000])
    parser.add_argument("--tensors", type=int, nargs="+", default=[10_000, 100_000])
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    today = datetime.datetime.now(tz=datetime.UTC).date()
    print(f"{today}, {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}; seconds")
    of_model(20)  # what is imported and compiled at the first use
    table(given.units, of_model)
    with tempfile.TemporaryDirectory() as folder:
        table(given.tensors, lambda tensors: of_header(tensors, Path(folder)))


if __name__ == "__main__":
    main()
