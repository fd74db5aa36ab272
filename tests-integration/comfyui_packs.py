"""Checkouts of other packs whose nodes get a choice of device, and a real server that has one of them loaded.

They are looked for in the folder that `TORCHSPAN_PACKS` names (`~/.cache/torchspan/packs` without it): a checkout of a
pack is `PACK`, another version of it `PACK@anything`. What packs import besides the host's own requirements is taken
from the folder `site-packages` beside them, for one checkout also from `CHECKOUT.site-packages`, where these exist.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from comfy_nodes.nodes.table._siblings import SIBLINGS, SiblingNode
from comfyui_server import HERE, Server, running_server

ROOT = HERE.parent
OURS = "torchspan"
PROBES = ("comfyui_pack_probe.py", "comfyui_pack_weights.py")
PACKS = tuple(dict.fromkeys(node.pack for node in SIBLINGS))
_CANNOT_IMPORT = re.compile(r"Cannot import (\S+) module for custom nodes: (.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A version of another pack.

    Attributes:
        pack: the pack's name.
        folder: where it is.
        commit: the commit that is checked out, seven digits; empty where nothing says so.
    """

    pack: str
    folder: Path
    commit: str

    @property
    def rows(self) -> tuple[SiblingNode, ...]:
        """What our table says about the pack."""
        return tuple(node for node in SIBLINGS if node.pack == self.pack)


def packs_folder() -> Path:
    """Where checkouts are looked for."""
    return Path(os.environ.get("TORCHSPAN_PACKS") or Path.home() / ".cache/torchspan/packs")


def checkouts(pack: str) -> list[Checkout]:
    """The checkouts of a pack, the plain one first."""
    folders = [packs_folder() / pack, *sorted(packs_folder().glob(f"{pack}@*"))]
    return [
        Checkout(pack=pack, folder=folder, commit=_commit(folder))
        for folder in folders
        if folder.is_dir() and not folder.name.endswith(".site-packages")
    ]


def every_checkout() -> list[Any]:
    """A test parameter for each checkout, and one that is skipped for each pack that has none."""
    found: list[Any] = []
    for pack in PACKS:
        there = [pytest.param(each, id=each.folder.name) for each in checkouts(pack)]
        absent = pytest.mark.skip(
            reason=f"no checkout of {pack} in {packs_folder()} (TORCHSPAN_PACKS names the folder)"
        )
        found += there or [pytest.param(None, id=pack, marks=absent)]
    return found


@contextmanager
def pack_server(
    base: Path, others: Mapping[str, Checkout], *, ours_first: bool, devices: int = 0, loaded: bool = True
) -> Iterator[Server]:
    """Start a server with our pack and others, in the order that is wanted.

    The host loads the packs of one folder in the order of the file system, which nobody chooses; but it goes through
    its folders in order. So the probes lie in the first, and the packs of each side in one of the others.

    Args:
        base: the server's base directory, new.
        others: the checkouts, by the names under which the host sees them.
        ours_first: whether ours is loaded before the others.
        devices: number of simulated accelerators; 0 runs on the CPU.
        loaded: whether the host may load the others; they lie where it looks in any case.
    """
    folders = [base / name for name in ("custom_nodes", "earlier_nodes", "later_nodes")]
    for folder in folders:
        folder.mkdir(parents=True)
    probes, ours, theirs = folders if ours_first else (folders[0], folders[2], folders[1])
    for name in PROBES:
        (probes / name).write_text((HERE / name).read_text(encoding="utf-8"), encoding="utf-8")
    (ours / OURS).symlink_to(ROOT)
    for name, checkout in others.items():
        (theirs / name).symlink_to(checkout.folder)
    config = base / "paths.yaml"
    config.write_text(json.dumps({"torchspan tests": {"custom_nodes": "\n".join(map(str, folders[1:]))}}))
    with running_server(
        base,
        packs=[OURS, *PROBES, *(others if loaded else ())],
        devices=devices,
        capacity_bytes=8 << 30,
        arguments=["--extra-model-paths-config", str(config)],
        environment={"PYTHONPATH": os.pathsep.join(map(str, _libraries(others)))},
    ) as server:
        yield server


def failed_imports(server: Server) -> dict[str, str]:
    """The packs that the host says it could not import, by name, and why."""
    return {Path(path).name: reason for path, reason in _CANNOT_IMPORT.findall(server.log)}


def described(offered: Mapping[str, Any], node_id: str) -> dict[str, tuple[str, Any, dict[str, Any]]]:
    """Inputs of a node in the order in which the host shows them: name -> group, kind or choices, what else is said.

    Nodes of the older and the newer kind say the same in different ways; here they do not differ.
    """
    inputs = offered[node_id]["input"]
    found = {}
    for group in ("required", "optional"):
        for name in offered[node_id]["input_order"].get(group, ()):
            kind, *rest = inputs[group][name]
            more = {key: value for key, value in (rest[0] if rest else {}).items() if value is not None}
            if kind == "COMBO":
                kind = more.pop("options", [])
                more.pop("multiselect", None)
            found[name] = (group, kind, more)
    return found


def _commit(folder: Path) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short=7", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
    )
    return done.stdout.strip() if done.returncode == 0 else ""


def _libraries(others: Mapping[str, Checkout]) -> list[Path]:
    """Folders that the server's interpreter looks into before its own."""
    own = [checkout.folder.with_name(f"{checkout.folder.name}.site-packages") for checkout in others.values()]
    folders = [*own, packs_folder() / "site-packages"]
    inherited = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return [folder for folder in folders if folder.is_dir()] + inherited
