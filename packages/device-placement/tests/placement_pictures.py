"""The pictures of the README. Run this file to draw them again."""

from __future__ import annotations

from pathlib import Path

from placement_trees import FLUX_DOUBLE, FLUX_SINGLE, GIB, machine, unit

from block_discovery import BlockTree
from device_placement import plan, predict, render_svg, render_timeline_svg

FOLDER = Path(__file__).parents[1] / "docs"


def pictures() -> dict[str, str]:
    """SVG text by file name: a two-stream transformer on a small card, another card and the host."""
    double = [unit(f"double_blocks.{index}", FLUX_DOUBLE) for index in range(12)]
    single = [unit(f"single_blocks.{index}", FLUX_SINGLE) for index in range(32)]
    hardware = machine(5 * GIB, gb_per_second=9, donors=("cuda:1", "cpu"))
    placement = plan(BlockTree(units=(*double, *single)), "cuda:0,auto;cuda:1,1.5gb;cpu,*", hardware)
    estimate = predict(placement, hardware, compute_seconds=0.4)
    return {"plan.svg": render_svg(placement), "timeline.svg": render_timeline_svg(estimate)}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (FOLDER / name).write_text(picture + "\n", encoding="utf-8")
