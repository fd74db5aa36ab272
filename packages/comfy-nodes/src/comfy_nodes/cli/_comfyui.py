"""ComfyUI on this machine, seen from outside: its folder, its version, and what of ours lies in its `custom_nodes`.

Nothing of ComfyUI is imported: the command runs in any Python, with or without it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comfy_nodes.cli._exit import CommandError

LINKED = '"""Written by `torchspan link`'
"""How the file begins that `torchspan link` puts into a linked folder; nothing else is ever replaced or removed."""

OLDEST = (0, 3, 64)
"""The oldest release that the pack is tried on."""

ANCESTOR = "comfyui-multigpu"
Way = Literal["clone", "built pack", "link"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackCopy:
    """One copy of the pack in `custom_nodes`.

    Attributes:
        folder: where it is.
        way: how it came there.
    """

    folder: Path
    way: Way


def find_comfyui(asked: str | None) -> Path | None:
    """The folder that ComfyUI runs in: asked for, or COMFYUI_PATH, or the current folder; None without one.

    Raises:
        CommandError: the folder asked for, or in COMFYUI_PATH, has no `custom_nodes`.
    """
    given = os.environ.get("COMFYUI_PATH") or None if asked is None else asked
    if given is None:
        here = Path.cwd()
        return here if (here / "main.py").is_file() and (here / "custom_nodes").is_dir() else None
    folder = Path(given).expanduser().resolve()
    if not (folder / "custom_nodes").is_dir():
        raise CommandError(
            f"{folder} has no folder custom_nodes; give the folder of ComfyUI's main.py, or its --base-directory"
        )
    return folder


def read_version(comfyui: Path) -> str | None:
    """The version of a ComfyUI, or None where the folder does not tell (a base directory without the program)."""
    path = comfyui / "comfyui_version.py"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"""__version__ = ["']([^"']+)["']""", text)
    return found.group(1) if found else None


def is_old(version: str) -> bool:
    """Whether a release is older than those that the pack is tried on.

    >>> is_old("0.3.63"), is_old("0.3.64"), is_old("0.12.0"), is_old("1.0-rc1")
    (True, False, False, False)
    """
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    return numbers < OLDEST


def pack_copies(custom_nodes: Path) -> tuple[PackCopy, ...]:
    """Every copy of the pack that ComfyUI would load, by name."""
    found = []
    for folder in _enabled(custom_nodes):
        way = _way(folder)
        if way is not None:
            found.append(PackCopy(folder=folder, way=way))
    return tuple(found)


def _way(folder: Path) -> Way | None:
    if is_linked(folder):
        return "link"
    if (folder / "lib" / "comfy_nodes").is_dir():
        return "built pack"
    return "clone" if (folder / "packages" / "comfy-nodes" / "pyproject.toml").is_file() else None


def is_linked(folder: Path) -> bool:
    """Whether `torchspan link` made this folder."""
    entry = folder / "__init__.py"
    return entry.is_file() and entry.read_text(encoding="utf-8", errors="replace").startswith(LINKED)


def ancestors(custom_nodes: Path) -> tuple[Path, ...]:
    """Folders of ComfyUI-MultiGPU, which publishes ids that this pack publishes, too."""
    return tuple(folder for folder in _enabled(custom_nodes) if ANCESTOR in folder.name.lower())


def packs_named(custom_nodes: Path, names: frozenset[str]) -> tuple[str, ...]:
    """Which of these packs are there, under the names of their folders."""
    wanted = {name.lower() for name in names}
    return tuple(folder.name for folder in _enabled(custom_nodes) if folder.name.lower() in wanted)


def _enabled(custom_nodes: Path) -> list[Path]:
    folders = (folder for folder in custom_nodes.iterdir() if folder.is_dir())
    return sorted(folder for folder in folders if not folder.name.endswith(".disabled") and folder.name[0] not in "._")
