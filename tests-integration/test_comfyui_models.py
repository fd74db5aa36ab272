"""Every diffusion model class of the host is treated: its blocks are found, planned, and placed without weights."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import nn

import discovery_oracles
from alloc_spec import parse
from block_discovery import discover
from device_placement import Device, Hardware, Link, plan
from get_comfyui import find_comfyui, read_version

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]
GIB = 1 << 30
FACTS = json.loads((discovery_oracles.DATA / "models_comfy.json").read_text(encoding="utf-8"))
OWN = FACTS["models"]
LABELLED = {
    entry["path"]: entry
    for entry in json.loads((discovery_oracles.DATA / "blocks_comfy.json").read_text(encoding="utf-8"))[
        "models"
    ].values()
}
NAME = "unet_model"
"""The argument of the host's model bases that says which network they sample."""


@cache
def offered() -> tuple[str, ...]:
    """Dotted names of the networks that the host's model bases are made with, read from its source."""
    comfyui = find_comfyui()
    if comfyui is None:
        return ()
    tree = ast.parse((comfyui / "comfy" / "model_base.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    spelled = {ast.unparse(value) for value in _values(tree)} - {NAME}
    return tuple(sorted(imported.get(name, name) for name in spelled))


def _values(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from (keyword.value for keyword in node.keywords if keyword.arg == NAME)
        elif isinstance(node, ast.FunctionDef):
            defaults = zip(reversed(node.args.args), reversed(node.args.defaults), strict=False)
            yield from (default for argument, default in defaults if argument.arg == NAME)


def entry_of(path: str) -> dict[str, Any]:
    return LABELLED[path] if path in LABELLED else {"path": path, "kwargs": {}, **OWN[path]}


@cache
def built(path: str) -> nn.Module:
    return discovery_oracles._build_comfy(entry_of(path))


@pytest.fixture(autouse=True)
def of_this_release() -> None:
    """The labels give arguments that older releases do not take."""
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip("no ComfyUI checkout")
    if Version(read_version(comfyui)) < Version(FACTS["version"]):
        pytest.skip(f"the labels are those of ComfyUI {FACTS['version']}")


def test_no_diffusion_model_of_the_host_is_untreated() -> None:
    assert len(offered()) > 20
    untreated = set(offered()) - set(LABELLED) - set(OWN)
    assert not untreated, f"label them in {discovery_oracles.DATA / 'models_comfy.json'}: {sorted(untreated)}"
    assert not set(OWN) & set(LABELLED), "labelled twice"


@pytest.mark.parametrize("path", sorted(OWN))
def test_its_blocks_are_found(path: str) -> None:
    if path not in offered():
        pytest.skip("this ComfyUI does not have it")
    model = built(path)
    tree = discover(model)
    blocks = {unit.path for unit in tree.units if unit.kind == "block"}
    in_blocks = {tensor.name for unit in tree.units if unit.kind == "block" for tensor in unit.tensors}
    for container, count in OWN[path]["blocks"].items():
        labels = [f"{container}.{name}" for name, _ in model.get_submodule(container).named_children()]
        assert len(labels) == count
        for label in labels:
            tensors = {f"{label}.{name}" for name, _ in model.get_submodule(label).named_parameters()}
            # A block that is large beside the model is cut into smaller units.
            assert label in blocks or tensors <= in_blocks, label
    assert tree.size_bytes == sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("path", offered())
def test_it_is_planned_and_placed(path: str) -> None:
    """On a compute device that keeps a third, a donor and the host's memory; nothing has weights, so nothing moves."""
    if path not in {*LABELLED, *OWN}:
        pytest.skip("untreated")
    discovery_oracles.import_comfy("comfy.model_patcher")
    from comfy_nodes.host.placing import _distribute, _layers, _placement

    model = nn.Module()
    model.diffusion_model = built(path)
    modules = dict(model.named_modules())
    tree = _layers.layer_tree(
        _distribute.model_sizes(model),
        prefix="diffusion_model.",
        is_castable=lambda name: hasattr(modules[f"diffusion_model.{name}"], "comfy_cast_weights"),
    )
    names = ("cuda:0", "cuda:1", "cpu")
    hardware = Hardware(
        compute="cuda:0",
        devices=tuple(Device(name=name, total_bytes=500 * GIB, free_bytes=500 * GIB) for name in names),
        links=tuple(Link(source=name, target="cuda:0", gb_per_second=10.0) for name in names[1:]),
    )
    planned = plan(tree, parse("cuda:0,33%;cuda:1,33%;cpu,*"), hardware)
    kept = planned.bytes_on("cuda:0")
    movable = sum(layer.size_bytes for unit in tree.units if unit.kind != "rest" for layer in unit.tensors)
    assert sum(planned.bytes_on(name) for name in names) == tree.size_bytes
    assert movable >= 0.6 * tree.size_bytes
    assert kept <= max(0.34 * tree.size_bytes, tree.size_bytes - movable)
    homes = {f"diffusion_model.{name}": torch.device(device) for name, device in _distribute.homes_of(planned).items()}
    placement = _placement.settle(model, homes, torch.device("cuda:0"))
    own = sum(_placement.layer_bytes(module) for module in placement.own_modules(model))
    lent = sum(_placement.layer_bytes(layer) for layer in placement.layers.values())
    assert lent == tree.size_bytes - kept
    assert own >= kept
    assert all(layer.comfy_cast_weights for layer in placement.layers.values())
    (bank,) = placement.banks
    assert sum(parameter.nbytes for parameter in bank.model.parameters()) == planned.bytes_on("cuda:1")
