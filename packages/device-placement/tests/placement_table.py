"""The table of the design: policies at equal VRAM, and how to compute it from the planner and the predictor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from placement_trees import flux_seconds, flux_tree, machine, qwen_tree, wan_tree

from block_discovery import BlockTree
from device_placement import Policy, plan, predict


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One row: a model, its compute seconds a pass, a link and the memory for weights on the compute device."""

    name: str
    tree: BlockTree
    unit_seconds: dict[str, float]
    gb_per_second: float
    vram_gb: int


FLUX = ("Flux fp8, C = 0.60", flux_tree(), flux_seconds(0.60))
WAN = ("Wan 14B fp8, C = 1.50", wan_tree(), {f"blocks.{index}": 1.5 / 40 for index in range(40)})
QWEN = ("Qwen fp8, C = 2.14", qwen_tree(), {f"blocks.{index}": 2.14 / 60 for index in range(60)})

CASES = [
    Case(name=name, tree=tree, unit_seconds=seconds, gb_per_second=link, vram_gb=vram)
    for (name, tree, seconds), link, vram in [
        (FLUX, 25.0, 6),
        (FLUX, 12.0, 6),
        (FLUX, 6.0, 8),
        (FLUX, 3.0, 10),
        (WAN, 3.0, 10),
        (QWEN, 3.0, 16),
    ]
]


@cache
def seconds_of(case: Case, policy: Policy, *, slots: int = 2, overlap: bool = True) -> float:
    """Predicted seconds a pass when residents and slots together fill the memory of the case."""
    hardware = machine(case.vram_gb * 10**9, gb_per_second=case.gb_per_second)
    result = plan(case.tree, "cuda:0,auto;cpu,*", hardware, policy=policy, slots=slots, unit_seconds=case.unit_seconds)
    estimate = predict(result, hardware, unit_seconds=case.unit_seconds, overlap=overlap)
    assert estimate.seconds is not None
    return estimate.seconds


def bound_of(case: Case) -> float:
    """``max(C, D)``: the compute time, and the time to bring over what can never be resident."""
    compute = sum(case.unit_seconds.values())
    return max(compute, (case.tree.size_bytes - case.vram_gb * 10**9) / (case.gb_per_second * 1e9))
