"""A server with this pack alone, and the editor that is opened on it: one of each for a module of tests.

The model files that our workflows name are there but empty, so that a node that the editor marks red is marked for what
we did. Devices are called as they are here: what the workflows say of `cuda:0` is said of `npu:0`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes_golden import WORKFLOWS
from PIL import Image

from comfyui_browser import Editor, browsing, editing, require_editor
from comfyui_server import running_server
from conftest import PACK, ROOT

DEVICES = ("npu:0", "npu:1", "cpu")
EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
_FOLDERS = ("checkpoints", "clip_vision", "controlnet", "diffusion_models", "loras", "text_encoders", "vae")
_FILE_NAME = re.compile(r"[\w.-]+\.(?:safetensors|gguf|ckpt)")
_PICTURES = ("photo.png", "edges.png")


def here(document: Any) -> Any:
    """The same document with the names that devices have here."""
    return json.loads(json.dumps(document).replace("cuda:", "npu:"))


def put_files(base: Path, tiny_models: Path) -> None:
    """The tiny models, and an empty file for every model and a small picture for every input of our workflows."""
    texts = [file.read_text(encoding="utf-8") for file in (*EXAMPLES, *WORKFLOWS.glob("*.json"))]
    named = {name for text in texts for name in _FILE_NAME.findall(text)}
    for kind in _FOLDERS:
        folder = base / "models" / kind
        folder.mkdir(parents=True)
        for name in named:
            (folder / name).touch()
        for file in (tiny_models / kind).glob("*"):
            (folder / file.name).symlink_to(file)
    diffusers = base / "models" / "diffusers" / "stable-diffusion-xl"
    diffusers.mkdir(parents=True)
    (diffusers / "model_index.json").write_text("{}", encoding="utf-8")
    (base / "input").mkdir()
    for name in _PICTURES:
        Image.new("RGB", (8, 8)).save(base / "input" / name)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium."""
    with browsing() as started:
        yield started


@pytest.fixture(scope="module")
def opened(browser: Any, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Editor]:
    """The editor, for all tests of a module."""
    base = tmp_path_factory.mktemp("editor")
    put_files(base, tiny_models)
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / PACK).symlink_to(ROOT)
    pages = ["--front-end-root", str(require_editor())]
    with (
        running_server(base, packs=[PACK], devices=2, capacity_bytes=8 << 30, arguments=pages) as server,
        editing(browser, server) as editor,
    ):
        yield editor


@pytest.fixture
def editor(opened: Editor) -> Iterator[Editor]:
    """The same editor, which must have nothing to complain about when the test ends."""
    opened.complaints.clear()
    yield opened
    assert opened.complaints == []
