"""The public names of all packages: none disappears or appears by accident, each is there and documented.

The names are in data/public_names.json; a change there belongs into the changelog of the package.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest

PUBLIC: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "data" / "public_names.json").read_text(encoding="utf-8")
)
BASES = {
    "alloc_spec": "AllocSpecError",
    "block_discovery": "BlockDiscoveryError",
    "comfy_nodes.host": "HostError",
    "device_placement": "PlacementError",
    "gguf_loader": "GgufError",
    "ray_parallel": "ParallelError",
}
NEED_THE_HOST = ("comfy_nodes", "comfy_nodes.nodes", "comfy_nodes.host")
"""Modules that make some names only inside ComfyUI; the `host` tests use those."""

NAMES = [
    (module, name)
    for module, names in PUBLIC.items()
    for name in names
    if module not in NEED_THE_HOST or name in vars(importlib.import_module(module))
]


def test_every_package_is_in_the_list() -> None:
    folders = {path.name for path in (Path(__file__).parents[1] / "packages").glob("*/src/*") if path.is_dir()}
    assert {module.partition(".")[0] for module in PUBLIC} == folders


@pytest.mark.parametrize("module", PUBLIC)
def test_the_public_names_are_frozen(module: str) -> None:
    names = importlib.import_module(module).__all__
    assert sorted(names) == PUBLIC[module]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES])
def test_a_public_name_is_there_and_documented(module: str, name: str) -> None:
    thing = getattr(importlib.import_module(module), name)
    if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__.startswith(module.partition(".")[0]):
        assert inspect.getdoc(thing), f"{module}.{name} has no docstring"
    if name.endswith("Error"):
        bases = [base for prefix, base in BASES.items() if module.startswith(prefix)]
        assert bases, f"{module} has no base class for its errors"
        assert bases[0] in {base.__name__ for base in thing.__mro__}
