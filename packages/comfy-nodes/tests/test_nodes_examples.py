"""The example workflows on the real host: its nodes are what the examples take them for, and it accepts the graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from host_testing import comfyui, host
from nodes_host_testing import Pack, pack

from comfy_nodes.nodes.table._table import TABLE

__all__ = ["comfyui", "host", "pack"]
pytestmark = pytest.mark.host

FILES = sorted((Path(__file__).resolve().parents[3] / "example_workflows").glob("*.json"))
WIDGETS = ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")
FRONTEND_WIDGETS = {"seed": "control_after_generate", "noise_seed": "control_after_generate", "image": "upload"}
"""Input of the host -> the widget that the editor adds behind it: it is saved, and is no input of the host."""


def types_of(pack: Pack, kind: str) -> dict[str, str]:
    """The type of each input of a node, in the order of the host."""
    described = pack.classes()[kind].INPUT_TYPES()
    inputs = {**described.get("required", {}), **described.get("optional", {})}
    return {each: said[0] if isinstance(said[0], str) else "COMBO" for each, said in inputs.items()}


def widgets_of(pack: Pack, kind: str) -> list[str]:
    """The widgets of a node in the order in which the editor saves them."""
    if kind in TABLE:
        return [widget.name for widget in TABLE[kind].widgets if widget.kind != "LINK"]
    widgets = []
    for name, io_type in types_of(pack, kind).items():
        if io_type in WIDGETS:
            widgets += [name, *([FRONTEND_WIDGETS[name]] if name in FRONTEND_WIDGETS else [])]
    return widgets


def prompt_of(pack: Pack, saved: dict[str, Any]) -> dict[str, Any]:
    """The prompt that the editor makes of an example."""
    links = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    prompt = {}
    for each in saved["nodes"]:
        if each["type"] == "MarkdownNote":
            continue
        values = dict(zip(widgets_of(pack, each["type"]), each["widgets_values"], strict=True))
        values = {name: value for name, value in values.items() if name not in FRONTEND_WIDGETS.values()}
        linked = {slot["name"]: links[slot["link"]] for slot in each["inputs"]}
        prompt[str(each["id"])] = {"class_type": each["type"], "inputs": values | linked}
    return prompt


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_sockets_and_outputs_are_those_of_the_host(pack: Pack, file: Path) -> None:
    for each in json.loads(file.read_text())["nodes"]:
        if each["type"] in TABLE or each["type"] == "MarkdownNote":
            continue
        sockets = {name: io_type for name, io_type in types_of(pack, each["type"]).items() if io_type not in WIDGETS}
        saved = {slot["name"]: slot["type"] for slot in each["inputs"]}
        assert list(sockets.items())[: len(saved)] == list(saved.items()), each["type"]
        # Newer hosts give the images of a node that saves them as an output, which no example uses.
        outputs = [slot["type"] for slot in each["outputs"]]
        assert list(pack.classes()[each["type"]].RETURN_TYPES)[: len(outputs)] == outputs, each["type"]


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_the_host_finds_nothing_wrong_but_missing_files(pack: Pack, file: Path) -> None:
    saved = json.loads(file.read_text().replace("cuda:", "npu:"))
    for number, said in pack.check(prompt_of(pack, saved)).items():
        for sentence in said.splitlines():
            missing = sentence.startswith("Value not in list: ") and (
                ".safetensors" in sentence or ".gguf" in sentence or ".ckpt" in sentence or "model_path" in sentence
            )
            absent_picture = "Invalid image file" in sentence
            assert missing or absent_picture, f"{number}: {sentence}"
