"""One small workflow of every historic layout, as posted to the server and as saved by the editor: what it asks for."""

import json
from pathlib import Path
from typing import Any

import pytest
from nodes_testing import DEVICES, sent_by_editor

from alloc_spec import AllocationSpec, Donated
from comfy_nodes.host import PlacementRequest
from comfy_nodes.nodes._asked import request_for
from comfy_nodes.nodes._controls import FIELD_OF
from comfy_nodes.nodes._errors import InputValueError
from comfy_nodes.nodes._rewrite import rewrite_prompt
from comfy_nodes.nodes._table import TABLE

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
LAYOUTS = pytest.mark.parametrize("layout", GOLDEN)


def prompt_of(layout: str, form: str) -> dict[str, Any]:
    saved = json.loads((WORKFLOWS / f"{layout}-{form}.json").read_text())
    return sent_by_editor(saved) if form == "ui" else saved


def request_of(node: dict[str, Any]) -> PlacementRequest:
    row = TABLE[node["class_type"]]
    assert row.loader is not None
    own = {widget.name for widget in row.loader.widgets}
    return request_for(row, {name: value for name, value in node["inputs"].items() if name not in own}, DEVICES)


def asked(request: PlacementRequest) -> Asked:
    spec = request.allocation
    assert isinstance(spec, AllocationSpec)
    assert request.compute_device is not None
    shares = [entry for entry in spec.entries if isinstance(entry.amount, Donated)]
    moved = shares[0].amount.total_bytes / 2**30 if shares and isinstance(shares[0].amount, Donated) else None
    return request.compute_device, moved, tuple(entry.device for entry in shares), str(spec)


@LAYOUTS
@pytest.mark.parametrize("form", ["api", "ui"])
@pytest.mark.parametrize("rewritten", [True, False], ids=["through the server", "straight to the node"])
def test_what_an_older_workflow_asks_for(layout: str, form: str, rewritten: bool) -> None:
    prompt = prompt_of(layout, form)
    if (layout, form, rewritten) == ("1.5.0", "ui", False):
        # Its text stands in a number's place, which only the server can put right.
        with pytest.raises(InputValueError, match="number of gigabytes"):
            request_of(prompt["1"])
        return
    if rewritten:
        prompt = rewrite_prompt(prompt, TABLE, DEVICES)
    assert [asked(request_of(node)) for node in prompt.values()] == GOLDEN[layout]


@LAYOUTS
@pytest.mark.parametrize("form", ["api", "ui"])
def test_the_host_finds_only_inputs_that_it_knows(layout: str, form: str) -> None:
    for node in rewrite_prompt(prompt_of(layout, form), TABLE, DEVICES).values():
        row = TABLE[node["class_type"]]
        assert set(node["inputs"]) <= set(row.input_names)
        for widget in row.widgets:
            value = node["inputs"].get(widget.name, widget.default)
            if widget.name in FIELD_OF and value is not None:
                kinds = {"COMBO": str, "STRING": str, "FLOAT": (int, float), "BOOLEAN": bool}
                assert isinstance(value, kinds[widget.kind]), widget.name  # type: ignore[arg-type]
                assert widget.kind == "BOOLEAN" or not isinstance(value, bool), widget.name


@pytest.mark.parametrize(
    ("layout", "ejects"),
    [("2.5.0", [False, True]), ("2.5.1", [False, True, True]), ("2.1-2.4", [True, False]), ("2.0", [True, True])],
)
def test_who_makes_room(layout: str, ejects: list[bool]) -> None:
    # keep_loaded of 2.5.0 is the opposite of eject_models; before it there was neither, and the defaults hold.
    prompt = rewrite_prompt(prompt_of(layout, "api"), TABLE, DEVICES)
    assert [request_of(node).eject_models for node in prompt.values()] == ejects


def test_every_layout_has_both_forms() -> None:
    files = {path.stem for path in WORKFLOWS.glob("*.json")}
    assert files == {f"{layout}-{form}" for layout in GOLDEN for form in ("api", "ui")}
