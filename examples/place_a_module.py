"""Run a module with most of its weights on a donor: find its units, plan, predict, place, compare.

The card and its link are emulated, so that this runs anywhere. With a GPU, `device_placement.probe()` describes the
hardware, and `place(model, placement)` needs no backend.
"""

from __future__ import annotations

import torch

from block_discovery import discover
from device_placement import Device, EmulatedBackend, Hardware, Link, place, plan, predict, render_table

MIB = 2**20


def main() -> None:
    """Place a small transformer on an emulated card and compare its output."""
    torch.manual_seed(0)
    layers = (torch.nn.TransformerEncoderLayer(64, 4, 256, batch_first=True) for _ in range(8))
    model, x_BTC = torch.nn.Sequential(*layers).eval(), torch.randn(1, 16, 64)
    with torch.no_grad():
        expected = model(x_BTC)

    hardware = Hardware(
        compute="card:0",
        devices=(
            Device(name="card:0", total_bytes=2 * MIB, free_bytes=2 * MIB),
            Device(name="cpu", total_bytes=64 * MIB, free_bytes=64 * MIB),
        ),
        links=(Link(source="cpu", target="card:0", gb_per_second=1.0),),
    )
    placement = plan(discover(model), "card:0,40%;cpu,*", hardware)
    print(render_table(placement, hardware, predict(placement, hardware, compute_seconds=0.010)))

    with place(model, placement, backend=EmulatedBackend(hardware.links)) as placed, torch.no_grad():
        output = model(x_BTC)
        print(placed.stats())
    print("same output:", torch.equal(output, expected))


if __name__ == "__main__":
    main()
