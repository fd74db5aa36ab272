"""The example workflows on the real host: its nodes are what the examples take them for, and it accepts the graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from host_testing import comfyui, host
from nodes_host_testing import Pack, pack

import node_examples

__all__ = ["comfyui", "host", "pack"]
pytestmark = pytest.mark.host

ROOT = Path(__file__).resolve().parents[3]
FILES = sorted((ROOT / node_examples.FOLDER).glob("*.json"))
WIDGETS = ("COMBO", "INT", "FLOAT", "STRING", "BOOLEAN")


@pytest.mark.parametrize("name", node_examples.HOST_KINDS)
def test_a_node_of_the_host_is_what_the_examples_take_it_for(pack: Pack, name: str) -> None:
    kind = node_examples.HOST_KINDS[name]
    described = pack.classes()[name].INPUT_TYPES()
    inputs = {**described.get("required", {}), **described.get("optional", {})}
    types = {each: said[0] if isinstance(said[0], str) else "COMBO" for each, said in inputs.items()}
    widgets = [each for each, io_type in types.items() if io_type in WIDGETS]
    assert [each for each in kind.widgets if each not in node_examples.FRONTEND_WIDGETS] == widgets
    sockets = {each: io_type for each, io_type in types.items() if io_type not in WIDGETS}
    required = {each: sockets[each] for each in kind.sockets}
    assert required == dict(kind.sockets)
    assert list(sockets)[: len(required)] == list(required)
    # Newer hosts give the images of a node that saves them as an output, which no example uses.
    assert list(kind.outputs) == list(pack.classes()[name].RETURN_TYPES)[: len(kind.outputs)]


def prompt_of(saved: dict[str, Any]) -> dict[str, Any]:
    """The prompt that the editor makes of an example."""
    links = {link[0]: [str(link[1]), link[2]] for link in saved["links"]}
    prompt = {}
    for each in saved["nodes"]:
        if each["type"] == "MarkdownNote":
            continue
        widgets = node_examples.kind_of(each["type"]).widgets
        values = {
            name: value
            for name, value in zip(widgets, each["widgets_values"], strict=True)
            if name not in node_examples.FRONTEND_WIDGETS
        }
        linked = {slot["name"]: links[slot["link"]] for slot in each["inputs"]}
        prompt[str(each["id"])] = {"class_type": each["type"], "inputs": values | linked}
    return prompt


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_the_host_finds_nothing_wrong_but_missing_files(pack: Pack, file: Path) -> None:
    saved = json.loads(file.read_text().replace("cuda:", "npu:"))
    for number, said in pack.check(prompt_of(saved)).items():
        for sentence in said.splitlines():
            missing = sentence.startswith("Value not in list: ") and (
                ".safetensors" in sentence or ".gguf" in sentence or ".ckpt" in sentence or "model_path" in sentence
            )
            absent_picture = "Invalid image file" in sentence
            assert missing or absent_picture, f"{number}: {sentence}"
