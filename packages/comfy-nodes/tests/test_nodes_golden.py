"""One small workflow of every historic layout, as posted to the server and as saved by the editor: what it asks for."""

from typing import Any

import pytest
from nodes_golden import EJECTS, GOLDEN, WORKFLOWS, asked, request_of, saved_workflow
from nodes_testing import DEVICES, sent_by_editor

from comfy_nodes.nodes._controls import FIELD_OF
from comfy_nodes.nodes._errors import InputValueError
from comfy_nodes.nodes.older._rewrite import rewrite_prompt
from comfy_nodes.nodes.table._table import TABLE

LAYOUTS = pytest.mark.parametrize("layout", GOLDEN)


def prompt_of(layout: str, form: str) -> dict[str, Any]:
    saved = saved_workflow(layout, form)
    return sent_by_editor(saved) if form == "ui" else saved


@LAYOUTS
@pytest.mark.parametrize("form", ["api", "ui"])
@pytest.mark.parametrize("rewritten", [True, False], ids=["through the server", "straight to the node"])
def test_what_an_older_workflow_asks_for(layout: str, form: str, rewritten: bool) -> None:
    prompt = prompt_of(layout, form)
    if (layout, form, rewritten) == ("1.5.0", "ui", False):
        # Its text stands in a number's place, which only the server can put right.
        with pytest.raises(InputValueError, match="number of gigabytes"):
            request_of(prompt["1"], DEVICES)
        return
    if rewritten:
        prompt = rewrite_prompt(prompt, TABLE, DEVICES)
    assert [asked(request_of(node, DEVICES)) for node in prompt.values()] == GOLDEN[layout]


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


@pytest.mark.parametrize("layout", EJECTS)
def test_who_makes_room(layout: str) -> None:
    prompt = rewrite_prompt(prompt_of(layout, "api"), TABLE, DEVICES)
    assert [request_of(node, DEVICES).eject_models for node in prompt.values()] == EJECTS[layout]


def test_every_layout_has_both_forms() -> None:
    files = {path.stem for path in WORKFLOWS.glob("*.json")}
    assert files == {f"{layout}-{form}" for layout in GOLDEN for form in ("api", "ui")}
