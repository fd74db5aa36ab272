"""The ancestor's published benchmarks are what the predictor says of a system without prefetch.

Seconds an iteration by GB offloaded, read from its plots (`placement_published_benchmarks.json`). Two points of each
row give the compute time and the link; the predictor has to find the others. The run with nothing offloaded took
another code path in the ancestor (it is slower than small offloads in some rows) and is left out.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from placement_trees import GIB, machine, tree_of

from alloc_spec import Budget
from device_placement import plan, predict

PUBLISHED = json.loads(Path(__file__).with_name("placement_published_benchmarks.json").read_text(encoding="utf-8"))
ROWS = [
    pytest.param(list(zip(model["gb"], seconds, strict=False))[1:], id=f"{name}, {link}")
    for name, model in PUBLISHED.items()
    if isinstance(model, dict) and "gb" in model
    for link, seconds in model["rows"].items()
    if len(seconds) > 3
]
MODEL_GB = 24


def predicted(offloaded_gb: float, *, compute_seconds: float, gb_per_second: float, overlap: bool) -> float:
    """Seconds an iteration of a model of equal blocks with so many GB on the other side of a link."""
    tree = tree_of([(40_000_000,)] * (MODEL_GB * 25))
    moved = int(offloaded_gb * 1e9)
    budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": tree.size_bytes - moved, "cpu": moved})
    hardware = machine(32 * GIB, gb_per_second=gb_per_second, latency_seconds=0)
    result = plan(tree, budget, hardware, policy="contiguous")
    seconds = predict(result, hardware, compute_seconds=compute_seconds, overlap=overlap).seconds
    assert seconds is not None
    return seconds


@pytest.mark.parametrize("row", ROWS)
def test_every_published_row_is_compute_plus_bytes_over_bandwidth(row: list[tuple[float, float]]) -> None:
    (first_gb, first_seconds), (last_gb, last_seconds) = row[0], row[-1]
    gb_per_second = (last_gb - first_gb) / (last_seconds - first_seconds)
    compute_seconds = first_seconds - first_gb / gb_per_second
    for offloaded_gb, seconds in row[1:-1]:
        found = predicted(offloaded_gb, compute_seconds=compute_seconds, gb_per_second=gb_per_second, overlap=False)
        assert found == pytest.approx(seconds, rel=0.012)


def test_a_system_with_prefetch_would_not_have_published_these_rows() -> None:
    """Flux fp16 over PCIe 3 x8, 5.6 GB offloaded: 3.63 s were published; prefetch alone would have given 3.05 s."""
    row = PUBLISHED["flux_kontext_fp16"]["rows"]["x8 PCIe3 cpu"]
    assert row[3] > 1.15 * predicted(5.6, compute_seconds=2.49, gb_per_second=4.88, overlap=True)
