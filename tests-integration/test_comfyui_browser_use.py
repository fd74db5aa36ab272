"""The pack's nodes used in ComfyUI's own editor, in a real browser: added, explained, run, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from comfy_nodes.nodes.table._siblings import SIBLINGS
from comfy_nodes.nodes.table._table import TABLE
from comfyui_browser import Editor, editing, require_editor
from comfyui_browser_fixtures import EXAMPLES, browser, editor, here, opened
from comfyui_checkpoints import VAE
from comfyui_picture import photograph
from comfyui_server import running_server
from comfyui_workflows import (
    GGUF_DENSE,
    GGUF_FILE,
    Node,
    Workflow,
    expert,
    legacy,
    node,
    sampling,
    standardized_cpu,
    stock_unet,
    unet_file,
    with_inputs,
)
from conftest import PACK, ROOT

__all__ = ["browser", "editor", "opened"]
pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(900)]

TESTS = ROOT / "packages/comfy-nodes/tests"
PUBLISHED = json.loads((TESTS / "data/published_nodes.json").read_text(encoding="utf-8"))["nodes"]
STANDINS = f"""import sys
sys.path.append({str(TESTS)!r})
from nodes_standins import NODE_CLASS_MAPPINGS, REPAIRED
NODE_CLASS_MAPPINGS["PulidModelLoader"] = REPAIRED
"""
ADD = """(kind) => {
    // Not cleared: the editor would count from 1 again, and give a new node what an earlier one of its number held.
    for (const each of [...window.app.graph._nodes]) window.app.graph.remove(each);
    const node = window.LiteGraph.createNode(kind);
    if (!node) return null;
    window.app.graph.add(node);
    const described = window.LiteGraph.registered_node_types[kind].nodeData;
    return {
        title: node.title, red: Boolean(node.has_errors), summary: described.description,
        deprecated: described.deprecated, category: described.category,
        inputs: Object.values(described.inputs).map((each) => [each.name, each.tooltip]),
        outputs: described.outputs.map((each) => [each.name, each.tooltip]),
        values: (node.widgets ?? []).map((each) => [each.name, each.value]),
    };
}"""


def numbered(workflow: Workflow) -> Workflow:
    """The same with numbers for names, as the editor gives them; the first is 1."""
    numbers = {name: str(index) for index, name in enumerate(workflow, start=1)}
    return {
        numbers[name]: {
            **each,
            "inputs": {
                key: [numbers[value[0]], value[1]] if isinstance(value, list) else value
                for key, value in each["inputs"].items()
            },
        }
        for name, each in workflow.items()
    }


def number_of(kind: str, editor: Editor) -> str:
    (number,) = (each.id for each in editor.nodes() if each.kind == kind)
    return number


@pytest.mark.parametrize("node_id", TABLE)
def test_a_node_can_be_added_and_explains_itself(editor: Editor, node_id: str) -> None:
    row = TABLE[node_id]
    added = editor.page.evaluate(ADD, node_id)
    assert added["title"] == row.display_name
    assert added["summary"] == row.summary
    assert added["category"] == row.category
    assert added["deprecated"] == row.deprecated
    assert not added["red"]
    assert added["inputs"] == [[widget.name, widget.tooltip] for widget in row.widgets]
    assert added["outputs"] == [[output.name, output.tooltip] for output in row.outputs]
    declared = {widget.name: widget for widget in row.widgets if widget.kind != "LINK"}
    assert [name for name, _ in added["values"]] == list(declared)
    for name, value in added["values"]:
        if declared[name].default is not None:
            assert value == declared[name].default


@pytest.mark.parametrize("node_id", TABLE)
def test_the_document_of_a_node_can_be_read(editor: Editor, node_id: str) -> None:
    row = TABLE[node_id]
    editor.page.evaluate(ADD, node_id)
    editor.page.evaluate("() => window.app.canvas.selectNode(window.app.graph._nodes[0])")
    editor.page.locator("[data-testid=info-button]").click()
    document = editor.page.locator(".node-help-content", has_text=row.summary)
    document.wait_for()
    text = document.inner_text()
    assert text.startswith(row.display_name)
    for each in (*row.input_names, *(output.name for output in row.outputs)):
        assert each in text
    assert "|" not in text
    assert "`" not in text


def test_ids_that_were_published_for_other_packs_are_there_beside_them(
    browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("siblings")
    (base / "custom_nodes" / "standins").mkdir(parents=True)
    (base / "custom_nodes" / "standins" / "__init__.py").write_text(STANDINS, encoding="utf-8")
    (base / "custom_nodes" / PACK).symlink_to(ROOT)
    pages = ["--front-end-root", str(require_editor())]
    with (
        running_server(base, packs=[PACK, "standins"], devices=2, arguments=pages) as server,
        editing(browser, server) as editor,
    ):
        added = {each: editor.page.evaluate(ADD, each) for each in (*PUBLISHED, *(node.node_id for node in SIBLINGS))}
        assert [node_id for node_id, each in added.items() if each is None] == []
        for node_id, published in PUBLISHED.items():
            names = [name for name, _ in added[node_id]["inputs"]]
            wanted = [each["name"] for each in published["inputs"]]
            if node_id in TABLE:
                continue
            assert names[: len(wanted)] == wanted, node_id
        assert editor.complaints == []


RUNS: dict[str, tuple[str, Node, str]] = {
    "standardized": ("sd15", with_inputs(standardized_cpu(unet_file("sd15")), donor_device="npu:1"), unet_file("sd15")),
    "expert": ("sd15", with_inputs(expert(unet_file("sd15")), donor_device="cpu"), unet_file("sd15")),
    "gguf": ("flux", with_inputs(legacy(GGUF_FILE), virtual_vram_gb=4.0), GGUF_DENSE),
}
"""Model, loader and the file that the host loads by itself. The editor rounds gigabytes to tenths."""


@pytest.mark.parametrize("way", RUNS)
def test_a_workflow_runs_from_the_editor_with_the_stock_nodes_bits(editor: Editor, way: str) -> None:
    name, loader, twin = RUNS[way]
    editor.open(numbered(sampling(name, loader, seed=5)))
    editor.press_run()
    kind, said = editor.wait_for_end()
    assert kind == "execution_success", said
    assert editor.told() == ""
    (loaded,) = (entry for entry in editor.server.state()["loaded"] if entry["planned"])
    assert sum(loaded["planned"].values()) > 0
    (latent,) = editor.output(number_of("SaveLatent", editor))["latents"]
    editor.server.free()
    stock = editor.server.latent(editor.server.run(sampling(name, stock_unet(twin), seed=5)))
    assert torch.equal(load_file(editor.server.base / "output" / latent["filename"])["latent_tensor"], stock)
    assert editor.server.state()["simulated"]["violations"] == []


def test_a_picture_comes_back_to_the_editor(editor: Editor) -> None:
    workflow = sampling("sd15", RUNS["expert"][1], seed=5)
    controls = {"compute_device": "npu:0", "virtual_ram_gb": 4.0, "donor_device": "cpu", "expert_mode_allocations": ""}
    workflow["vae"] = node("VAELoaderDisTorchMultiGPU", vae_name=VAE, **controls)
    workflow["image"] = node("VAEDecode", samples=["sample", 0], vae=["vae", 0])
    workflow["show"] = node("PreviewImage", images=["image", 0])
    editor.open(numbered(workflow))
    editor.press_run()
    kind, said = editor.wait_for_end()
    assert kind == "execution_success", said
    wait_for_picture(editor, number_of("PreviewImage", editor))


def wait_for_picture(editor: Editor, number: str) -> None:
    shows = "(number) => window.app.graph.getNodeById(number)?.imgs?.[0]?.naturalWidth > 0"
    editor.page.wait_for_function(shows, arg=int(number))


def test_the_dry_run_shows_its_tables_and_its_picture(editor: Editor) -> None:
    (file,) = (each for each in EXAMPLES if each.stem == "plan before loading")
    saved = here(json.loads(file.read_text(encoding="utf-8").replace("flux1-dev.safetensors", unet_file("flux"))))
    editor.open(saved)
    editor.press_run()
    kind, said = editor.wait_for_end()
    assert kind == "execution_success", said
    tables, *_ = (each for each in editor.nodes() if each.kind == "PreviewAny")
    assert "Device allocation" in str(tables.values)
    wait_for_picture(editor, number_of("PreviewImage", editor))


def shown(loader: Node) -> Workflow:
    return numbered({"model": loader, "show": node("PreviewAny", source=["model", 1])})


def complain(editor: Editor, loader: Node) -> Any:
    """Run what the server refuses; return the panel in which the editor says so."""
    editor.open(shown(loader))
    editor.press_run()
    panel = editor.show_errors()
    panel.get_by_role("button", name="Info for").click()
    # The editor also writes to the console that the server refused.
    refusals = [each for each in editor.complaints if "Prompt execution failed" in each]
    assert editor.complaints == refusals
    editor.complaints.clear()
    assert [each.red for each in editor.nodes()] == [True, False]
    return panel.locator("[id^=execution-item-detail]")


def test_a_text_that_cannot_be_read_is_shown_with_its_caret(editor: Editor) -> None:
    text = complain(editor, with_inputs(bad(), expert_mode_allocations="npu:0,1mb,cpu,*"))
    # Only so are the spaces before the caret shown.
    assert text.evaluate("(each) => getComputedStyle(each).whiteSpaceCollapse") == "preserve"
    lines = text.inner_text().split("\n")
    assert "expert_mode_allocations - expected ';' or the end after an amount, found ','" in lines[0]
    assert lines[1:3] == ["    npu:0,1mb,cpu,*", "             ^"]
    assert 'did you mean "npu:0,1mb;cpu,*"?' in lines[3]


@pytest.mark.parametrize("name", ["compute_device", "donor_device"])
def test_a_device_that_is_not_there_is_reported_at_its_input(editor: Editor, name: str) -> None:
    text = complain(editor, with_inputs(bad(), **{name: "cuda:7"})).inner_text()
    assert "cuda:7" in text
    assert name in text


def bad(**inputs: Any) -> Node:
    return with_inputs(standardized_cpu(unet_file("flux")), **inputs)


REFUSED = {
    "allocation": (
        bad(expert_mode_allocations="cuda:5,1mb;cpu,*"),
        "device 'cuda:5' is not on this machine",
    ),
    "donor": (bad(donor_device="npu:0"), "npu:0 computes and cannot be its own donor; choose another donor"),
    "file": (bad(unet_name="flux1-dev.safetensors"), "flux1-dev.safetensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_reported_at_its_node(editor: Editor, case: str) -> None:
    loader, sentence = REFUSED[case]
    editor.open(shown(loader))
    editor.press_run()
    kind, said = editor.wait_for_end()
    assert kind == "execution_error"
    assert said["node_id"] == "1"
    # The editor puts the report together after it has opened the panel.
    log = editor.show_errors().locator("[data-testid=runtime-error-panel]", has_text="Exception Message")
    log.wait_for()
    (told,) = (line for line in log.inner_text().splitlines() if "Exception Message" in line)
    assert sentence in told


def test_a_picture_of_an_example_can_be_written(editor: Editor, tmp_path: Path) -> None:
    photograph(editor, EXAMPLES[0], tmp_path / "example.jpg", 0.8)
    with Image.open(tmp_path / "example.jpg") as picture:
        assert picture.size == (1600, 1000)
        assert len(picture.getcolors(1 << 24) or ()) > 100
