"""Commands that read headers and describe devices answer without torch, whose import alone takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_gguf import write_gguf
from cli_testing import transformer_shapes, write_header

DEVICES = ["--device", "cuda:0=8gb", "--device", "cpu=32gb"]
PROGRAM = """
import sys
from comfy_nodes.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as left:
    code = left.code
heavy = {"torch", "ray", "gguf", "safetensors"} & set(sys.modules)
print("code", code, "heavy", sorted(heavy), file=sys.stderr)
"""
COMMANDS = {
    "help": (["--help"], 0),
    "version": (["--version"], 0),
    "explain": (["explain", "cuda:0,2gb,run;cpu,*"], 0),
    "explain a mistake": (["explain", "cuda:0,2gb,cpu,*"], 2),
    "plan": (["plan", "MODEL", "--spec", "cuda:0,64mb;cpu,*", *DEVICES], 0),
    "plan without a text": (["plan", "MODEL", *DEVICES], 0),
    "plan a GGUF file": (["plan", "GGUF", *DEVICES], 0),
    "plan a mistake": (["plan", "MODEL", "--spec", "cuda:0,2gb,cpu,*", *DEVICES], 2),
    "plan an absent file": (["plan", "absent.safetensors", *DEVICES], 1),
    "plan for a device that is not given": (["plan", "MODEL", "--spec", "cuda:9,1gb;cpu,*", *DEVICES], 2),
    "plan for a device without a size": (["plan", "MODEL", "--device", "gpu"], 2),
    "gguf info": (["gguf", "info", "GGUF"], 0),
    "gguf info of another file": (["gguf", "info", "MODEL"], 1),
    "a mistyped command": (["pln", "MODEL"], 2),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("torchless")
    shapes = transformer_shapes(4, 64)
    write_header(folder / "m.safetensors", shapes)
    write_gguf(folder / "m.gguf", {name: torch.zeros(shape) for name, shape in shapes.items()})
    return {"MODEL": str(folder / "m.safetensors"), "GGUF": str(folder / "m.gguf")}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_on_headers_imports_no_torch(files: dict[str, str], name: str, tmp_path: Path) -> None:
    arguments, code = COMMANDS[name]
    command = [sys.executable, "-c", PROGRAM, *(files.get(argument, argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
    assert done.stderr.splitlines()[-1] == f"code {code} heavy []", done.stderr
