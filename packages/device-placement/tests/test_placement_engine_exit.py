"""A program that ends with models still placed ends well."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from device_placement import EmulatedBackend, Link, PlacementPlan, TensorHome, UnitPlacement, place

torch.set_num_threads(1)


def placed(side):
    model = torch.nn.Sequential(*(torch.nn.Linear(side, side, bias=False) for _ in range(4))).requires_grad_(False)
    homes = [TensorHome(name=f"{i}.weight", size_bytes=side * side * 4, device="donor:0") for i in range(4)]
    units = tuple(UnitPlacement(path=str(i), class_name="Linear", kind="block", homes=(homes[i],)) for i in range(4))
    plan = PlacementPlan(compute="cpu", donors=("donor:0",), policy="stripe", slots=2, units=units)
    link = Link(source="donor:0", target="cpu", gb_per_second=1000.0, latency_seconds=0.0)
    return place(model, plan, backend=EmulatedBackend([link]))


placed(64)
handle = placed(2048)
print("done")
"""


@pytest.mark.slow
def test_exit_without_remove_while_copies_are_under_way() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
