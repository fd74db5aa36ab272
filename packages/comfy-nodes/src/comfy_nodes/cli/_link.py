"""`torchspan link`: let ComfyUI load the pack that pip installed."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from comfy_nodes.cli._comfyui import LINKED, find_comfyui, is_linked, pack_copies
from comfy_nodes.cli._exit import CommandError, ExitCode, exits_with

FOLDER = "torchspan"
SHOWN_BY_THE_HOST = ("example_workflows", "locales")
"""What ComfyUI looks for in the folder of a pack itself, and not in what the pack imports."""

_ENTRY = (
    LINKED
    + ''': the way from ComfyUI to the installed package comfy-nodes."""

import sys
from importlib.util import find_spec

if sys.version_info < (3, 11):
    raise ImportError(
        "Torchspan needs Python 3.11 or newer and this ComfyUI runs on Python "
        f"{{sys.version_info[0]}}.{{sys.version_info[1]}}; install ComfyUI on a newer Python"
    )
if find_spec("comfy_nodes") is None:
    sys.path.append({site!r})

from comfy_nodes.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
'''
)


def run(options: argparse.Namespace) -> ExitCode:
    """Make the link, or remove it with `--remove`.

    Raises:
        CommandError: there is no ComfyUI, another copy of the pack is there, or the folder cannot be written.
    """
    comfyui = find_comfyui(options.comfyui)
    if comfyui is None:
        raise CommandError(
            "this folder is not ComfyUI's and COMFYUI_PATH is not set; name the folder of its main.py: --comfyui PATH"
        )
    folder = comfyui / "custom_nodes" / FOLDER
    with exits_with(ExitCode.REFUSED, OSError):
        if options.remove:
            unlink(folder)
            print(f"removed {folder}")
        else:
            link(folder)
            print(f"{folder} loads {package_folder()}; start ComfyUI again")
    return ExitCode.OK


def package_folder() -> Path:
    """Where the package comfy_nodes lies."""
    return Path(__file__).resolve().parents[1]


def link(folder: Path) -> None:
    """Write a folder that loads the installed package, in place of one that was written before.

    A small file that imports, not a symbolic link: Windows asks for special rights for those. Where ComfyUI runs in
    another Python than this command, the file also says where the package is.

    Args:
        folder: the new folder inside `custom_nodes`.

    Raises:
        CommandError: there is something else in its place, or another copy of the pack beside it.
        OSError: it cannot be written; nothing is left behind.
    """
    others = [copy for copy in pack_copies(folder.parent) if copy.folder != folder]
    if others:
        raise CommandError(
            f"{others[0].folder} is a copy of the pack ({others[0].way}), and ComfyUI would load both; remove it first"
        )
    _refuse_foreign(folder)
    if find_spec("comfy_nodes.nodes") is None:
        raise CommandError(f"{package_folder()} has no nodes; install comfy-nodes again")
    with tempfile.TemporaryDirectory(prefix=".torchspan-", dir=folder.parent) as work:
        new = Path(work, FOLDER)
        new.mkdir()
        entry = _ENTRY.format(site=str(package_folder().parent))
        (new / "__init__.py").write_text(entry, encoding="utf-8")
        for name in SHOWN_BY_THE_HOST:
            shown = _shown(name)
            if shown is not None:
                shutil.copytree(shown, new / name)
        if folder.exists():
            folder.rename(Path(work, "before"))
        new.rename(folder)


def unlink(folder: Path) -> None:
    """Remove a folder that `link` wrote.

    Raises:
        CommandError: it is not there, or something else is.
        OSError: it cannot be removed.
    """
    if not folder.exists():
        raise CommandError(f"{folder} does not exist; there is nothing to remove")
    _refuse_foreign(folder)
    shutil.rmtree(folder)


def _shown(name: str) -> Path | None:
    """A folder that the host shows: in an installed package, or at the top of the clone that the package lies in."""
    package = package_folder()
    clone = package.parents[3] if (package.parents[1] / "pyproject.toml").is_file() else package
    return next((folder / name for folder in (package, clone) if (folder / name).is_dir()), None)


def _refuse_foreign(folder: Path) -> None:
    if (folder.exists() or folder.is_symlink()) and (folder.is_symlink() or not is_linked(folder)):
        raise CommandError(f"{folder} was not made by this command; move it away first")
