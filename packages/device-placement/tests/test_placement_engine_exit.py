"""A program that ends with a model still placed ends well."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import torch
from device_placement import EmulatedBackend, Link, PlacementPlan, TensorHome, UnitPlacement, place

model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(8))).requires_grad_(False)
homes = [TensorHome(name=f"{i}.weight", size_bytes=64 * 64 * 4, device="donor:0") for i in range(8)]
units = tuple(UnitPlacement(path=str(i), class_name="Linear", kind="block", homes=(homes[i],)) for i in range(8))
plan = PlacementPlan(compute="cpu", donors=("donor:0",), policy="stripe", slots=2, units=units)
# A pass takes 0.4 s, so that copies are under way when the program ends.
link = Link(source="donor:0", target="cpu", gb_per_second=64 * 64 * 4 / 0.05 / 1e9)
handle = place(model, plan, backend=EmulatedBackend([link]))
model(torch.ones(1, 64))
print("done")
"""


def test_exit_without_remove_while_copies_are_under_way() -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
