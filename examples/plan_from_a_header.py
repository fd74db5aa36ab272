"""Plan a checkpoint and predict a step from the header of its file; no weight is read.

`python examples/plan_from_a_header.py FILE.safetensors "cuda:0,6gb;cpu,*"` plans a file of yours for a card of 12 GiB.
Without arguments it writes the header of a model of 20 GiB, which takes a few kilobytes, and plans that.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from block_discovery import discover_file
from device_placement import Device, Hardware, Link, plan, predict, render_table

GIB = 2**30
LAYERS = {"attn.qkv": (9216, 3072), "attn.proj": (3072, 3072), "mlp.up": (12288, 3072), "mlp.down": (3072, 12288)}


def write_header(path: Path, blocks: int) -> None:
    """Write a safetensors file with the names and shapes of a model, and holes where its weights would be."""
    header: dict[str, object] = {}
    end = 0
    for block in range(blocks):
        for name, (rows, columns) in LAYERS.items():
            start, end = end, end + 2 * rows * columns
            offsets = [start, end]
            header[f"blocks.{block}.{name}.weight"] = {
                "dtype": "BF16",
                "shape": [rows, columns],
                "data_offsets": offsets,
            }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def main(arguments: list[str]) -> None:
    """Print the plan and the prediction."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(arguments[0]) if arguments else Path(folder, "model.safetensors")
        spec = arguments[1] if len(arguments) > 1 else "cuda:0,6gb;cpu,*"
        if not arguments:
            write_header(file, blocks=96)
        tree = discover_file(file)

    hardware = Hardware(
        compute="cuda:0",
        devices=(
            Device(name="cuda:0", total_bytes=12 * GIB, free_bytes=11 * GIB),
            Device(name="cpu", total_bytes=64 * GIB, free_bytes=48 * GIB),
        ),
        links=(Link(source="cpu", target="cuda:0", gb_per_second=12.0),),
    )
    placement = plan(tree, spec, hardware)
    print(render_table(placement, hardware, predict(placement, hardware, compute_seconds=1.0)))


if __name__ == "__main__":
    main(sys.argv[1:])
