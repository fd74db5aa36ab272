"""The pack in ComfyUI's own editor, in a real browser: every workflow opens as it was meant, and runs from there.

The server has this pack alone, besides the probe of these tests. The model files that the workflows name are there but
empty, so that a node that the editor marks red is marked for what we did. Devices are called as they are here: what the
workflows say of `cuda:0` is said of `npu:0`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from nodes_golden import EJECTS, GOLDEN, Asked, asked, request_of, saved_workflow

from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._table import TABLE
from comfyui_browser import TOAST, Editor, ShownNode
from comfyui_browser_fixtures import DEVICES, EXAMPLES, browser, editor, here, opened
from comfyui_workflows import node
from conftest import PACK

__all__ = ["browser", "editor", "opened"]
pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]

GGUF = "UnetLoaderGGUFDisTorchMultiGPU"

EJECTED = {(layout, form): EJECTS[layout] for layout in ("2.5.0", "2.5.1") for form in ("named", "api")}
EJECTED["2.5.1", "ui"] = EJECTS["2.5.1"]
"""Without names, what stands last in a graph of 2.5.0 is taken for the switch of 2.5.1; before, there was none."""

LAYOUTS = pytest.mark.parametrize("layout", GOLDEN)


def example(file: Path) -> dict[str, Any]:
    saved: dict[str, Any] = here(json.loads(file.read_text(encoding="utf-8")))
    return saved


def widget_names(row: NodeRow) -> list[str]:
    return [widget.name for widget in row.widgets if widget.kind != "LINK"]


def with_noted_names(prompt: Mapping[str, Any]) -> dict[str, Any]:
    """A graph as an editor of 2025 saved it, which notes the names of the widgets beside their values."""
    nodes = [
        {
            "id": int(number),
            "type": each["class_type"],
            "pos": [0, 300 * int(number)],
            "size": [360, 200],
            "flags": {},
            "order": int(number),
            "mode": 0,
            "inputs": [{"name": name, "type": "*", "link": None, "widget": {"name": name}} for name in each["inputs"]],
            "outputs": [],
            "properties": {},
            "widgets_values": list(each["inputs"].values()),
        }
        for number, each in prompt.items()
    ]
    return {"nodes": nodes, "links": [], "groups": [], "last_node_id": len(nodes), "last_link_id": 0, "version": 0.4}


def golden(layout: str, form: str) -> dict[str, Any]:
    saved = here(saved_workflow(layout, "api" if form == "named" else form))
    document: dict[str, Any] = with_noted_names(saved) if form == "named" else saved
    return document


def assert_whole(shown: ShownNode, row: NodeRow) -> None:
    """A node of ours has the table's inputs in order, and no value that its widget could not have been given here."""
    assert shown.known
    assert not shown.red, shown
    assert [widget.name for widget in shown.widgets] == widget_names(row)
    assert shown.sockets == list(row.input_names)
    kinds: dict[str, Any] = {"COMBO": str, "STRING": str, "FLOAT": (int, float), "INT": int, "BOOLEAN": bool}
    declared = {widget.name: widget for widget in row.widgets}
    for widget in shown.widgets:
        kind = declared[widget.name].kind
        assert isinstance(widget.value, kinds[kind]), (shown.kind, widget)
        assert isinstance(widget.value, bool) is (kind == "BOOLEAN"), (shown.kind, widget)
        if kind == "COMBO":
            assert widget.value in widget.choices, (shown.kind, widget)
        if kind in ("FLOAT", "INT"):
            assert widget.least is not None
            assert widget.most is not None
            assert widget.least <= widget.value <= widget.most, (shown.kind, widget)


@LAYOUTS
@pytest.mark.parametrize("form", ["ui", "named", "api"])
def test_a_workflow_of_every_generation_opens_as_it_was_meant(editor: Editor, layout: str, form: str) -> None:
    shown = editor.open(golden(layout, form), layout)
    assert len(shown) == len(GOLDEN[layout])
    for each in shown:
        assert_whole(each, TABLE[each.kind])
    assert editor.told() == ""
    requests = [request_of(each, DEVICES) for each in editor.prompt().values()]
    assert [asked(request) for request in requests] == [asked_here(each) for each in GOLDEN[layout]]
    if (layout, form) in EJECTED:
        assert [request.eject_models for request in requests] == EJECTED[layout, form]


def asked_here(wanted: Asked) -> Asked:
    """The same in the names that devices have here."""
    device, gigabytes, donors, text = here(wanted)
    return device, gigabytes, tuple(donors), text


@LAYOUTS
def test_what_was_opened_is_saved_and_opened_again(editor: Editor, layout: str) -> None:
    editor.open(golden(layout, "ui"), layout)
    first = editor.prompt()
    editor.open(editor.saved(), layout)
    assert editor.prompt() == first


def test_a_workflow_keeps_nothing_of_the_one_before(editor: Editor) -> None:
    editor.open(golden("1.5.0", "api"))
    assert editor.nodes()[0].values["expert_mode_allocations"] == "npu:0,0.15;cpu,0.5"
    bare = {"1": node(GGUF, unet_name="flux1-dev-Q8_0.gguf")}
    (shown,) = editor.open(bare)
    assert list(shown.values.values()) == ["flux1-dev-Q8_0.gguf", "npu:0", 4, "cpu", ""]


@pytest.mark.parametrize("form", ["named", "api"])
def test_a_value_that_comes_through_a_socket_stays_linked(editor: Editor, form: str) -> None:
    inputs = {"device": "npu:1", "virtual_vram_gb": 4.0, "use_other_vram": False}
    older = {"1": node("PrimitiveFloat", value=6.0), "2": node(GGUF, unet_name="flux1-dev-Q8_0.gguf", **inputs)}
    document: dict[str, Any] = older
    if form == "api":
        document["2"]["inputs"]["virtual_vram_gb"] = ["1", 0]
    else:
        document = with_noted_names(older)
        document["nodes"][0]["outputs"] = [{"name": "FLOAT", "type": "FLOAT", "links": [1]}]
        document["nodes"][1]["inputs"][2]["link"] = 1
        document["links"] = [[1, 1, 0, 2, 2, "FLOAT"]]
    editor.open(document)
    assert editor.prompt()["2"]["inputs"] == {
        "unet_name": "flux1-dev-Q8_0.gguf",
        "compute_device": "npu:1",
        "virtual_ram_gb": ["1", 0],
        "donor_device": "cpu",
        "expert_mode_allocations": "",
    }


def test_a_device_of_another_machine_is_shown_as_it_was_saved(editor: Editor) -> None:
    for form in ("ui", "api"):
        shown = editor.open(saved_workflow("2.0", form))
        assert [each.red for each in shown] == [False, False]
        assert [each.values["compute_device"] for each in shown] == ["cuda:0", "cuda:1"]


def test_nodes_in_subgraphs_are_opened_like_all_others(editor: Editor) -> None:
    saved = golden("1.6-1.8", "ui")
    inner = editor.page.evaluate(
        """async (graph) => {
            const ours = window.app.extensions.find((each) => each.name === "torchspan.olderWorkflows");
            await ours.beforeConfigureGraph(graph);
            return graph.definitions.subgraphs[0].nodes;
        }""",
        {"nodes": [], "definitions": {"subgraphs": [{"nodes": saved["nodes"]}]}},
    )
    assert inner[0]["widgets_values"] == ["flux1-dev-Q8_0.gguf", "npu:0", 6, "cpu", ""]


def test_an_unreachable_server_is_reported_and_the_workflow_opens_all_the_same(editor: Editor) -> None:
    path = "**/torchspan/api/v1/reopen"
    editor.page.route(path, lambda route: route.fulfill(status=503, body="{}"))
    try:
        for form in ("ui", "api"):
            shown = editor.open(golden("2.0", form))
            assert [each.values["compute_device"] for each in shown] == ["npu:0", "npu:1"]
    finally:
        editor.page.unroute(path)
    toast = editor.page.locator(TOAST).first
    assert "Inputs of an older release could not be read (503)" in toast.inner_text()
    editor.close_toasts()
    assert len(editor.complaints) == 2
    editor.complaints.clear()


def test_the_editor_does_mark_what_it_lacks(editor: Editor) -> None:
    """Without this, that nothing is red would say nothing."""
    saved = golden("2.0", "ui")
    saved["nodes"][0]["widgets_values"][0] = "gone.safetensors"
    saved["nodes"][1]["type"] = "NobodysLoader"
    shown = editor.open(saved)
    assert shown[0].red
    assert not shown[1].known
    assert editor.told()
    editor.open(golden("2.0", "ui"))


@pytest.mark.parametrize("file", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_an_example_opens_whole(editor: Editor, file: Path) -> None:
    saved = example(file)
    shown = editor.open(saved, file.stem)
    assert editor.told() == ""
    by_number = {each.id: each for each in shown}
    assert set(by_number) == {str(each["id"]) for each in saved["nodes"]}
    for each in saved["nodes"]:
        found = by_number[str(each["id"])]
        assert found.known
        assert not found.red, found
        if found.kind in TABLE:
            assert_whole(found, TABLE[found.kind])
        if found.kind != "MarkdownNote":
            saved_values = each["widgets_values"]  # some nodes show more, which is not saved
            assert list(found.values.values())[: len(saved_values)] == saved_values
    links = sorted((str(link[1]), link[2], str(link[3]), link[5]) for link in saved["links"])
    assert [link[:3] for link in editor.links()] == [link[:3] for link in links]


SCROLLS = 40


def test_the_examples_are_in_the_template_browser(editor: Editor) -> None:
    editor.page.evaluate("window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    box = editor.page.get_by_role("dialog")
    box.get_by_text(PACK, exact=True).click()
    box.get_by_text(f"Showing {len(EXAMPLES)} of {len(EXAMPLES)} templates").wait_for()
    picture = box.locator("img").first
    picture.wait_for()
    assert picture.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 0
    picture.hover()
    missing = [file.stem for file in EXAMPLES]
    for _ in range(SCROLLS):  # newer editors draw a card when it comes into view
        missing = [stem for stem in missing if box.get_by_text(stem, exact=True).count() != 1]
        if not missing:
            break
        editor.page.mouse.wheel(0, 400)
        editor.page.wait_for_timeout(250)
    assert missing == []
    box.get_by_text("which devices are seen", exact=True).click()
    editor.page.wait_for_function("() => window.app.graph._nodes.some((node) => node.type === 'TorchspanDoctor')")
    box.wait_for(state="detached")
