"""What the golden workflows ask for: one small workflow of every historic layout, as posted and as saved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alloc_spec import AllocationSpec, Donated
from comfy_nodes.host import PlacementRequest
from comfy_nodes.nodes.running._request import request_for
from comfy_nodes.nodes.table._table import TABLE

WORKFLOWS = Path(__file__).parent / "data" / "workflows"

# Where a node computes, how many GB are moved to whom (None: the text decides), and the allocation.
Asked = tuple[str, float | None, tuple[str, ...], str]
GOLDEN: dict[str, list[Asked]] = {
    "1.5.0": [
        ("cuda:0", None, (), "cuda:0,0.15;cpu,0.5"),
        ("cuda:1", None, (), "cuda:1,0.2;cpu,0.5"),
    ],
    "1.6-1.8": [
        ("cuda:0", 6.0, ("cpu",), "#cuda:0;6;cpu"),
        ("cuda:0", 8.5, ("cuda:1", "cpu"), "#cuda:0;8.5;cuda:1,cpu"),
        ("cuda:1", 4.0, ("cuda:0", "cpu"), "#cuda:1;4;cuda:0,cpu"),
        ("cuda:0", None, (), "cuda:0,0.1;cuda:1,0.2;cpu,0.5"),
    ],
    "2.0": [
        ("cuda:0", 9.0, ("cuda:1",), "#cuda:0;9;cuda:1"),
        ("cuda:1", None, (), "cuda:1,2gb;cpu,*"),
    ],
    "2.1-2.4": [
        ("cuda:0", 9.0, ("cuda:1",), "#cuda:0;9;cuda:1"),
        ("cuda:1", 3.0, ("cpu",), "#cuda:1;3;cpu"),
    ],
    "2.5.0": [
        ("cuda:0", 12.5, ("cpu",), "#cuda:0;12.5;cpu"),
        ("cuda:0", 3.0, ("cuda:1",), "#cuda:0;3;cuda:1"),
    ],
    "2.5.1": [
        ("cuda:0", 12.5, ("cpu",), "#cuda:0;12.5;cpu"),
        ("cuda:0", 3.0, ("cuda:1",), "#cuda:0;3;cuda:1"),
        ("cuda:0", None, (), "cuda:0,50%;cpu,*"),
    ],
}
EJECTS = {"2.5.0": [False, True], "2.5.1": [False, True, True], "2.1-2.4": [True, False], "2.0": [True, True]}
"""Whether other models make room. keep_loaded of 2.5.0 is the opposite; before it there was neither: the defaults."""


def saved_workflow(layout: str, form: str) -> dict[str, Any]:
    """A golden workflow.

    Args:
        layout: key of `GOLDEN`.
        form: ``"api"`` or ``"ui"``.
    """
    loaded: dict[str, Any] = json.loads((WORKFLOWS / f"{layout}-{form}.json").read_text(encoding="utf-8"))
    return loaded


def request_of(node: Mapping[str, Any], devices: Sequence[str]) -> PlacementRequest:
    """What a node of a prompt asks for on a machine with these devices."""
    row = TABLE[node["class_type"]]
    assert row.loader is not None
    own = {widget.name for widget in row.loader.widgets}
    return request_for(row, {name: value for name, value in node["inputs"].items() if name not in own}, devices)


def asked(request: PlacementRequest) -> Asked:
    """A request in the form of `GOLDEN`."""
    spec = request.allocation
    assert isinstance(spec, AllocationSpec)
    assert request.compute_device is not None
    shares = [entry for entry in spec.entries if isinstance(entry.amount, Donated)]
    moved = shares[0].amount.total_bytes / 2**30 if shares and isinstance(shares[0].amount, Donated) else None
    return request.compute_device, moved, tuple(entry.device for entry in shares), str(spec)
