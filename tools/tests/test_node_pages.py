"""Documents are written from the table and current; example workflows are whole and give our nodes what they take."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from nodes_testing import DEVICES, sent_by_editor

import node_docs
from alloc_spec import parse
from comfy_nodes.nodes import WEB_DIRECTORY
from comfy_nodes.nodes.running._request import check_expert, request_for
from comfy_nodes.nodes.table._siblings import SIBLINGS
from comfy_nodes.nodes.table._table import TABLE

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "example_workflows").glob("*.json"))
EXAMPLES = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def test_pages_and_texts_are_what_the_table_says() -> None:
    assert list(node_docs.stale(ROOT)) == []


def test_every_node_has_a_page_where_the_host_looks() -> None:
    pages = {path.stem for path in (Path(WEB_DIRECTORY) / "docs").glob("*.md")}
    assert pages == set(TABLE) | {sibling.node_id for sibling in SIBLINGS}


def test_a_page_names_every_input_and_output() -> None:
    for row in TABLE.values():
        page = (Path(WEB_DIRECTORY) / "docs" / f"{row.node_id}.md").read_text()
        names = [*row.input_names, *(output.name for output in row.outputs)]
        assert all(f"| `{name}` |" in page for name in names)


def test_what_is_out_of_date_is_found_and_put_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (*node_docs.pages(), node_docs.NODES_PAGE):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tmp_path / path)
    docs = tmp_path / node_docs.PACK / "web" / "docs"
    (docs / "UNETLoaderMultiGPU.md").write_text("old")
    (docs / "GoneMultiGPU.md").write_text("of no node")
    page = tmp_path / node_docs.NODES_PAGE
    page.write_text(page.read_text().replace("`UNETLoaderMultiGPU`", "`Other`"))
    assert node_docs.main(["--check", "--root", str(tmp_path)]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert node_docs.main(["--root", str(tmp_path)]) == 0
    assert node_docs.main(["--check", "--root", str(tmp_path)]) == 0
    assert not (docs / "GoneMultiGPU.md").exists()


def test_there_are_examples_of_every_major_use() -> None:
    used = {each["type"] for file in FILES for each in json.loads(file.read_text())["nodes"]}
    layouts = {row.layout.name for row in TABLE.values() if row.layout is not None and row.node_id in used}
    assert len(FILES) >= 20
    assert {"plain device", "standardized DisTorch", "DisTorch2", "DisTorch2, encoders", "legacy"} <= layouts
    singles = {"TorchspanPlan", "TorchspanDoctor", "TorchspanRelease", "CheckpointLoaderAdvancedDisTorch2MultiGPU"}
    assert singles <= used


@EXAMPLES
def test_an_example_is_a_whole_graph(file: Path) -> None:
    saved = json.loads(file.read_text())
    nodes = {each["id"]: each for each in saved["nodes"]}
    assert len(nodes) == len(saved["nodes"])
    assert saved["last_node_id"] == max(nodes)
    assert saved["last_link_id"] == len(saved["links"])
    for number, source, output, target, slot, io_type in saved["links"]:
        assert number in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][slot]["link"] == number
        assert nodes[source]["outputs"][output]["type"] == io_type
        assert nodes[target]["inputs"][slot]["type"] in (io_type, "*") or io_type == "*"
    for each in saved["nodes"]:
        assert all(slot["link"] is not None for slot in each["inputs"]), f"{each['type']} misses an input"


@EXAMPLES
def test_an_example_gives_our_nodes_what_they_take(file: Path) -> None:
    saved = json.loads(file.read_text())
    ours = [each for each in saved["nodes"] if each["type"] in TABLE]
    assert ours
    for each in sent_by_editor({"nodes": ours}).values():
        row = TABLE[each["class_type"]]
        widgets = [widget for widget in row.widgets if widget.kind != "LINK"]
        for widget in widgets:
            value = each["inputs"][widget.name]
            kinds: dict[str, Any] = {"COMBO": str, "STRING": str, "FLOAT": (int, float), "BOOLEAN": bool}
            assert isinstance(value, kinds[widget.kind]), widget.name
            if widget.minimum is not None and widget.maximum is not None:
                assert widget.minimum <= value <= widget.maximum
            if widget.name.endswith("expert_mode_allocations"):
                assert check_expert(value) is None
        if row.loader is not None:
            request_for(row, {name: each["inputs"][name] for name in each["inputs"]}, DEVICES)


def test_allocations_in_the_documents_can_be_read() -> None:
    for text in ("cuda:0,6gb;cpu,*", "cuda:0,10gb;cuda:1,8gb;cpu,*"):
        assert parse(text).devices
    page = (ROOT / node_docs.NODES_PAGE).read_text()
    for text in ("auto", "cuda:0,10gb;cuda:1,8gb;cpu,*"):
        assert f"`{text}`" in page


@EXAMPLES
def test_an_example_has_a_note(file: Path) -> None:
    (note,) = [each for each in json.loads(file.read_text())["nodes"] if each["type"] == "MarkdownNote"]
    assert note["widgets_values"][0].endswith(".")
