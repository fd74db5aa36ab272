"""What a node pack adds to ComfyUI's start, and which libraries it brings in: ours, and others beside it.

    python tools/bench/pack_startup.py [--pack FOLDER ...] [--rounds 3]

Each pack is loaded by the real host's own function in a separate process, on the CPU, after the host has loaded its
own nodes; then every node is described as the editor asks for it. The fastest round counts. Needs a ComfyUI checkout
(`tools/get_comfyui.py`); a pack is a folder as it lies in custom_nodes, and this repository is the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

CHILD = """
import asyncio, json, sys, time
folder, checkout = sys.argv.pop(), sys.argv.pop()
sys.path.insert(0, checkout)
import comfy.options
comfy.options.enable_args_parsing()
import utils.install_util
import nodes
asyncio.run(nodes.init_builtin_extra_nodes())
own, before = set(nodes.NODE_CLASS_MAPPINGS), set(sys.modules)
started = time.perf_counter()
loaded = asyncio.run(nodes.load_custom_node(folder))
seconds = time.perf_counter() - started
added = [made for name, made in nodes.NODE_CLASS_MAPPINGS.items() if name not in own]
started = time.perf_counter()
for made in added:
    made.GET_NODE_INFO_V1() if hasattr(made, "GET_NODE_INFO_V1") else made.INPUT_TYPES()
described = time.perf_counter() - started
modules = {name for name in set(sys.modules) - before if not name.startswith(folder)}
tops = sorted({name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names))
print(json.dumps({"loaded": loaded, "seconds": seconds, "described": described, "nodes": len(added), "tops": tops}))
"""


def measure(folder: Path, checkout: Path, rounds: int) -> dict[str, Any]:
    """The fastest of several starts.

    Raises:
        SystemExit: the host could not be started, or could not load the pack.
    """
    results = []
    for _ in range(rounds):
        command = [sys.executable, "-c", CHILD, "--cpu", str(checkout), str(folder)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
        if done.returncode:
            raise SystemExit(f"{folder}: the host did not start\n{done.stderr[-2000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        if not result["loaded"]:
            raise SystemExit(f"{folder}: the host could not load it\n{done.stderr[-2000:]}")
        results.append(result)
    return min(results, key=lambda result: float(result["seconds"] + result["described"]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each pack and print one table."""
    sys.path.insert(0, str(ROOT / "tools"))
    from get_comfyui import find_comfyui

    parser = argparse.ArgumentParser(
        prog=Path(__file__).name, description="What node packs add to ComfyUI's start, side by side."
    )
    parser.add_argument("--pack", type=Path, action="append", default=[], help="another pack's folder; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="starts of each pack (default: 3)")
    options = parser.parse_args(arguments)
    checkout = find_comfyui()
    if checkout is None:
        print("needs a ComfyUI checkout: set COMFYUI_PATH, or run tools/get_comfyui.py", file=sys.stderr)
        return 1
    measured = {
        folder.resolve().name: measure(folder.resolve(), checkout, options.rounds) for folder in (ROOT, *options.pack)
    }
    ours = next(iter(measured.values()))
    print("| pack | nodes | load s | describe s | together s | ratio to ours | libraries it brings in |")
    print("|---|---|---|---|---|---|---|")
    for name, result in measured.items():
        together = result["seconds"] + result["described"]
        ratio = together / (ours["seconds"] + ours["described"])
        print(
            f"| {name} | {result['nodes']} | {result['seconds']:.2f} | {result['described']:.2f} | {together:.2f} "
            f"| {ratio:.1f} | {', '.join(result['tops']) or 'none'} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
