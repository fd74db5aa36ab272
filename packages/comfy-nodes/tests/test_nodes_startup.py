"""What importing the pack costs: no torch for the table, and for the classes nothing that the host has not loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

TABLE_ALONE = """
import json, sys
from comfy_nodes.nodes import WEB_DIRECTORY
from comfy_nodes.nodes.table._table import TABLE
print(json.dumps([len(TABLE), sorted({name.partition(".")[0] for name in sys.modules})]))
"""

IN_THE_HOST = """
import asyncio, json, sys
sys.path.insert(0, sys.argv.pop())
import comfy.options
comfy.options.enable_args_parsing()
import nodes
asyncio.run(nodes.init_builtin_extra_nodes())
before = set(sys.modules)
import torch
touched = []
for name in ("zeros", "empty", "ones", "tensor", "frombuffer"):
    setattr(torch, name, lambda *given, name=name, **named: touched.append(name))
from comfy_nodes.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY
described = {node_id: made.GET_NODE_INFO_V1() for node_id, made in NODE_CLASS_MAPPINGS.items()}
new = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
print(json.dumps({"new": new, "ids": sorted(described), "touched": touched}))
"""

HOUSE = {"alloc_spec", "block_discovery", "comfy_nodes", "device_placement"}


def run(script: str, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_the_table_needs_neither_torch_nor_the_host() -> None:
    nodes, modules = json.loads(run(TABLE_ALONE))
    assert nodes == 60
    for name in ("torch", "numpy", "PIL", "ray", "ray_parallel", "gguf", "gguf_loader", "comfy", "comfy_api"):
        assert name not in modules, name


@pytest.mark.host
@pytest.mark.slow
def test_the_classes_load_nothing_but_the_house_and_do_no_torch_work() -> None:
    get_comfyui = pytest.importorskip("get_comfyui")
    folder = get_comfyui.find_comfyui()
    if folder is None:
        pytest.skip("no ComfyUI checkout: set COMFYUI_PATH, or run tools/get_comfyui.py")
    found = json.loads(run(IN_THE_HOST, "--cpu", str(folder)))
    # The standard library may come along; other distributions may not.
    foreign = [name for name in found["new"] if name not in HOUSE and name not in sys.stdlib_module_names]
    assert foreign == []
    assert found["touched"] == []
    assert len(found["ids"]) == 60
