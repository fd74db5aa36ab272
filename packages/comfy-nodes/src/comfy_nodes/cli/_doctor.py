"""`torchspan doctor`: what is installed, which ComfyUI would load it, which devices there are, and what is wrong."""

from __future__ import annotations

import argparse
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from comfy_nodes.cli._comfyui import OLDEST, ancestors, find_comfyui, is_old, pack_copies, packs_named, read_version
from comfy_nodes.cli._exit import ExitCode
from comfy_nodes.cli._output import print_findings
from comfy_nodes.contract import Checkout, check, load_contract
from comfy_nodes.nodes._unmet import ids_of
from comfy_nodes.nodes.table._siblings import SIBLINGS
from comfy_nodes.nodes.table._table import TABLE
from device_placement import Finding, diagnose

DISTRIBUTION = "comfy-nodes"
SHOWN = 6
"""Node ids in one message."""

_TITLES = {"packages": "Packages", "comfyui": "ComfyUI", "devices": "Devices"}


def run(options: argparse.Namespace) -> ExitCode:
    """Print the findings; refuse when one of them is a problem.

    Raises:
        CommandError: the folder given for ComfyUI does not hold it.
    """
    sections: Mapping[str, Sequence[Finding]] = {
        "packages": tuple(package_findings()),
        "comfyui": tuple(comfyui_findings(find_comfyui(options.comfyui))),
        "devices": diagnose(),
    }
    problems = sum(finding.level == "problem" for findings in sections.values() for finding in findings)
    if options.json:
        found = {title: [asdict(finding) for finding in findings] for title, findings in sections.items()}
        print(json.dumps({**found, "problems": problems}, indent=2))
    else:
        for title, findings in sections.items():
            print_findings(_TITLES[title], findings)
        print(f"\n{problems or 'no'} problem{'' if problems == 1 else 's'}")
    return ExitCode.REFUSED if problems else ExitCode.OK


def package_findings() -> Iterator[Finding]:
    """What this pack consists of and asks for, and which of it is missing."""
    yield Finding(level="ok", subject="python", message=platform.python_version())
    yield Finding(
        level="ok", subject=DISTRIBUTION, message=f"{version(DISTRIBUTION)} in {Path(__file__).resolve().parents[1]}"
    )
    for requirement in requires(DISTRIBUTION) or ():
        wanted, _, condition = requirement.partition(";")
        name = re.split(r"[^A-Za-z0-9_.-]", wanted.strip(), maxsplit=1)[0]
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)""", condition)
        try:
            yield Finding(level="ok", subject=name, message=f"{version(name)} (asked for: {wanted.strip()})")
        except PackageNotFoundError:
            reason = f"not installed; only the extra {extra.group(1)!r} needs it" if extra else "not installed"
            level: Literal["note", "problem"] = "note" if extra else "problem"
            yield Finding(level=level, subject=name, message=reason, remedy=f'pip install "{wanted.strip()}"')


def comfyui_findings(comfyui: Path | None) -> Iterator[Finding]:
    """What would load the pack, and what would be in its way.

    Args:
        comfyui: the folder that ComfyUI runs in, None where it is not known.
    """
    if comfyui is None:
        yield Finding(
            level="note",
            subject="folder",
            message="not known, so nothing can be said about it",
            remedy="torchspan doctor --comfyui PATH, with the folder of ComfyUI's main.py",
        )
        return
    yield _host(comfyui)
    yield from _copies(comfyui)
    custom_nodes = comfyui / "custom_nodes"
    for folder in ancestors(custom_nodes):
        yield Finding(
            level="problem",
            subject=folder.name,
            message="publishes the ids that Torchspan publishes, and which of the two serves a workflow is chance",
            remedy=f"disable it in ComfyUI-Manager, or rename it to {folder.name}.disabled; its workflows open here",
        )
    yield from host_findings(comfyui)
    for name in packs_named(custom_nodes, frozenset(node.pack for node in SIBLINGS)):
        yield Finding(level="ok", subject=name, message="is there: its loaders get a choice of device")


def host_findings(comfyui: Path) -> Iterator[Finding]:
    """What of the host contract a checkout does not meet; nothing where the folder has no program."""
    if not (comfyui / "comfy").is_dir():
        return
    contract = load_contract()
    broken = [each for each in check(contract, Checkout(comfyui)) if not each.need.optional]
    for each in broken:
        lost = ids_of(each, TABLE)
        shown = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
        yield Finding(
            level="problem" if each.disables else "note",
            subject=each.need.name,
            message=f"{each.reason}; {each.need.without if each.disables else 'these nodes may fail'}: {shown}",
            remedy="update Torchspan, or use a ComfyUI that it was tried on; all other nodes work",
        )
    if not broken:
        message = f"has all {len(contract.needs)} symbols, calls and attributes that the nodes use"
        yield Finding(level="ok", subject="host contract", message=message)


def _host(comfyui: Path) -> Finding:
    found = read_version(comfyui)
    if found is None:
        return Finding(level="note", subject="version", message=f"{comfyui} has custom_nodes, but not the program")
    if is_old(found):
        oldest = ".".join(map(str, OLDEST))
        return Finding(
            level="problem",
            subject="version",
            message=f"{found} in {comfyui} is older than {oldest}, the oldest that the pack is tried on",
            remedy="update ComfyUI",
        )
    return Finding(level="ok", subject="version", message=f"{found} in {comfyui}")


def _copies(comfyui: Path) -> Iterator[Finding]:
    copies = pack_copies(comfyui / "custom_nodes")
    for copy in copies:
        yield Finding(level="ok", subject="pack", message=f"installed as a {copy.way} in {copy.folder}")
    if not copies:
        yield Finding(
            level="problem",
            subject="pack",
            message=f"not installed in {comfyui / 'custom_nodes'}",
            remedy=f"torchspan link --comfyui {comfyui}",
        )
    if len(copies) > 1:
        yield Finding(
            level="problem",
            subject="pack",
            message=f"there are {len(copies)} copies, and which of them serves a workflow is chance",
            remedy=f"keep one and remove {', '.join(str(copy.folder) for copy in copies[1:])}",
        )
