"""The pack at the start of a host that has changed: one line in the log, only the nodes concerned are missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comfy_nodes.nodes.table._table import TABLE
from comfyui_server import HERE, require_comfyui

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.timeout(300)]

START = """
import asyncio, json, logging, sys
folder, checkout = sys.argv.pop(), sys.argv.pop()
sys.path.insert(0, checkout)
import comfy.options
comfy.options.enable_args_parsing()
import utils.install_util
import nodes
own = set(nodes.NODE_CLASS_MAPPINGS)
lines = []
class Kept(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
logging.getLogger("comfy_nodes").addHandler(Kept())
loaded = asyncio.run(nodes.load_custom_node(folder))
print(json.dumps({"loaded": loaded, "ids": sorted(set(nodes.NODE_CLASS_MAPPINGS) - own), "lines": lines}))
"""


def started(checkout: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", START, "--cpu", str(checkout), str(HERE.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_a_host_that_lost_a_loader_keeps_all_other_nodes(tmp_path: Path) -> None:
    comfyui = require_comfyui()
    for path in comfyui.iterdir():
        if path.name != "comfy":
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / "comfy").mkdir()
    for path in (comfyui / "comfy").iterdir():
        (tmp_path / "comfy" / path.name).symlink_to(path)
    file = tmp_path / "comfy" / "clip_vision.py"
    file.unlink()
    shutil.copyfile(comfyui / "comfy" / "clip_vision.py", file)
    text = file.read_text(encoding="utf-8")
    assert "def load(ckpt_path):" in text
    file.write_text(text.replace("def load(ckpt_path):", "def load(ckpt_path, kind):"), encoding="utf-8")
    answer = started(tmp_path)
    lost = {node_id for node_id, row in TABLE.items() if row.runs == "CLIPVisionLoader"}
    assert answer["loaded"] is True
    assert set(answer["ids"]) == set(TABLE) - lost
    (line,) = answer["lines"]
    assert line.startswith("this ComfyUI has changed: comfy.clip_vision.load: ")
    assert f"; {len(lost)} nodes are left out (" in line
    assert all(node_id in line for node_id in lost)


def test_a_host_that_has_everything_costs_no_line() -> None:
    answer = started(require_comfyui())
    assert (answer["ids"], answer["lines"]) == (sorted(TABLE), [])
