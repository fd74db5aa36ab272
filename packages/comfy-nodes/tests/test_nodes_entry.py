"""The pack's entry: one sentence on a Python that is too old, real folders in a checkout without symbolic links."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from comfy_nodes.cli import _link
from comfy_nodes.nodes.table._table import TABLE

ROOT = Path(__file__).resolve().parents[3]
ENTRIES = {
    "clone": (ROOT / "__init__.py").read_text(encoding="utf-8"),
    "link": _link._ENTRY.format(site="/nowhere"),
}
AGED = """
import sys, types
sys.modules["comfy_api"] = types.ModuleType("comfy_api")
sys.modules["comfy_api"].__spec__ = types.SimpleNamespace(name="comfy_api")
sys.version_info = (3, 10, 14, "final", 0)
try:
    exec(compile(sys.stdin.read(), "custom_nodes/torchspan/__init__.py", "exec"), {"__file__": "__init__.py"})
except ImportError as error:
    print(error)
print(sorted(name for name in sys.modules if name.startswith(("comfy_nodes", "alloc_spec", "torch"))))
"""


@pytest.mark.parametrize("way", ENTRIES)
def test_the_entry_has_the_syntax_of_python_3_8(way: str) -> None:
    ast.parse(ENTRIES[way], feature_version=(3, 8))


@pytest.mark.parametrize("way", ENTRIES)
def test_an_old_python_gets_one_sentence_and_imports_nothing_of_ours(way: str) -> None:
    run = [sys.executable, "-c", AGED]
    done = subprocess.run(run, input=ENTRIES[way], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    sentence, imported = done.stdout.splitlines()
    assert sentence == (
        "Torchspan needs Python 3.11 or newer and this ComfyUI runs on Python 3.10; install ComfyUI on a newer Python"
    )
    assert imported == "[]"


def test_a_clone_without_symbolic_links_has_what_the_host_looks_for(tmp_path: Path) -> None:
    """As git clones on Windows, where symbolic links need special rights: a link becomes a text file."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a clone")
    clone = tmp_path / "torchspan"
    git = ["git", "-c", "core.symlinks=false", "-c", "advice.detachedHead=false"]
    subprocess.run([*git, "clone", "--quiet", "--depth", "1", ROOT.as_uri(), clone], check=True, timeout=120)
    texts = json.loads((clone / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(TABLE) <= set(texts)
    examples = sorted((clone / "example_workflows").glob("*.json"))
    assert examples
    for example in examples:
        json.loads(example.read_text(encoding="utf-8"))
        assert example.with_suffix(".jpg").read_bytes()[:2] == b"\xff\xd8"
    listed = subprocess.run(["git", "-C", clone, "ls-files", "-s"], check=True, capture_output=True, text=True).stdout
    assert not [line for line in listed.splitlines() if line.startswith("120000")], "symbolic links are tracked"
