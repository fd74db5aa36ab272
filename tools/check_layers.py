"""Check the arrows of docs/architecture.md: who may import whom, and who may name torch.cuda.

Run `uv run python tools/check_layers.py`; it prints every offender as `path:line: reason` and exits with 1 when there
is one. Only the syntax tree is read, nothing is imported.

The rules, for every Python file under packages/*/src and packages/*/tests:

1. A member imports only the siblings that `ARROWS` allows, and only their public modules.
2. Product code imports, besides those, the standard library and what its own pyproject.toml declares.
3. Only `comfy_nodes.host` imports ComfyUI; nothing imports comfy_nodes.
4. Product code names `torch.cuda` only in the files of `CUDA_FILES`, so that everything else runs on any device.
5. Inside a package, each room (sub-package) imports what its docstring allows, and neither rooms nor modules import
   one another in a circle (tools/check_rooms.py). `FLAT_FOLDERS` have no rooms; their modules have no circle either.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from check_rooms import circle_offences, room_offences
from import_graph import Module, imports_of, read_graph

ARROWS: dict[str, frozenset[str]] = {
    "alloc_spec": frozenset(),
    "block_discovery": frozenset(),
    "device_placement": frozenset({"alloc_spec", "block_discovery"}),
    "gguf_loader": frozenset(),
    "ray_parallel": frozenset({"alloc_spec", "block_discovery"}),
    "comfy_nodes": frozenset({"alloc_spec", "block_discovery", "device_placement", "gguf_loader", "ray_parallel"}),
}
"""Member -> the siblings it may import; rule 2 asks besides that its pyproject.toml declares them."""

CUDA_FILES: tuple[str, ...] = (
    "device_placement/*_cuda.py",
    "gguf_loader/*triton*.py",
    "ray_parallel/workers/*_cuda.py",
)
"""Patterns of paths below src; as everywhere in fnmatch, * reaches into folders too."""
HOST_MODULES = frozenset(
    {
        "aiohttp",  # its web server
        "comfy",
        "comfy_api",
        "comfy_execution",
        "comfy_extras",
        "execution",
        "folder_paths",
        "node_helpers",
        "nodes",
        "server",
    }
)
HOST_FILES: tuple[str, ...] = ("comfy_nodes/host/*.py",)
FLAT_FOLDERS: tuple[str, ...] = ("examples", "tests-integration", "tools", "tools/bench")
MODULES_OF: dict[str, frozenset[str]] = {"torch": frozenset({"torch", "triton"}), "pillow": frozenset({"PIL"})}
"""Distributions whose import names differ from their own; torch's Linux wheels bring triton."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One package of the workspace.

    Attributes:
        module: import name (``"alloc_spec"``).
        folder: packages/<name>.
        declared: top-level modules that its dependencies (extras included) provide.
    """

    module: str
    folder: Path
    declared: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offence:
    """One line that breaks a rule."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def read_members(root: Path) -> tuple[Member, ...]:
    """Read the members under `root`/packages from their pyproject.toml files.

    Raises:
        SystemExit: a member has no row in `ARROWS`: a new package needs its arrows written down first.
    """
    members = []
    for pyproject in sorted((root / "packages").glob("*/pyproject.toml")):
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        module = project["name"].replace("-", "_")
        if module not in ARROWS:
            raise SystemExit(
                f"{pyproject}: {module} has no row in ARROWS of {Path(__file__).name}; write down what it may import"
            )
        requirements = list(project.get("dependencies", ()))
        for extra in project.get("optional-dependencies", {}).values():
            requirements.extend(extra)
        declared: set[str] = set()
        for requirement in requirements:
            declared |= _modules_of(requirement)
        members.append(Member(module=module, folder=pyproject.parent, declared=frozenset(declared)))
    return tuple(members)


def _modules_of(requirement: str) -> frozenset[str]:
    name = re.split(r"[^A-Za-z0-9_.-]", requirement.strip(), maxsplit=1)[0].lower()
    return MODULES_OF.get(name, frozenset({name.replace("-", "_")}))


def cuda_lines(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that name `torch.cuda` in code, under any alias of torch; text and comments do not count."""
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "torch"
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and node.attr == "cuda"
            and isinstance(node.value, ast.Name)
            and node.value.id in aliases | {"torch"}
        ):
            yield node.lineno
    for found in imports_of(tree):
        if found.level:
            continue
        inside = found.module == "torch.cuda" or found.module.startswith("torch.cuda.")
        if inside or (found.module == "torch" and "cuda" in found.names):
            yield found.line


def check_file(path: Path, member: Member, *, product: bool) -> Iterator[Offence]:
    """Yield the offences of one file.

    Args:
        path: the file.
        member: the package it belongs to.
        product: True for code under src, False for tests, which may use any third party and torch.cuda.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    allowed = ARROWS[member.module]
    inside = path.relative_to(member.folder / "src").as_posix() if product else ""
    for found in imports_of(tree):
        if found.level or found.top == member.module:
            continue
        if found.top in ARROWS:
            if found.top not in allowed:
                may = ", ".join(sorted(allowed)) or "no sibling"
                yield Offence(
                    path=path, line=found.line, reason=f"{member.module} imports {found.top}, but may import {may}"
                )
            elif product and found.top not in member.declared:
                reason = f"{member.module} imports {found.top}, which its pyproject.toml does not declare"
                yield Offence(path=path, line=found.line, reason=reason)
            private = [
                part
                for part in (*found.module.split("."), *found.names)
                if part.startswith("_") and part != "__version__"
            ]
            if private:
                reason = f"{private[0]} is private to {found.top}; use what its __init__ exports"
                yield Offence(path=path, line=found.line, reason=reason)
        elif found.top in HOST_MODULES:
            if product and not _matches(inside, HOST_FILES):
                reason = f"{found.top} is ComfyUI's; only comfy_nodes.host imports the host"
                yield Offence(path=path, line=found.line, reason=reason)
        elif product and found.top not in sys.stdlib_module_names and found.top not in member.declared:
            reason = f"{found.top} is neither in the standard library nor declared by {member.folder.name}"
            yield Offence(path=path, line=found.line, reason=reason)
    if product and not _matches(inside, CUDA_FILES):
        for line in cuda_lines(tree):
            reason = f"torch.cuda is named outside of {', '.join(CUDA_FILES)}; use torch.accelerator or the backend"
            yield Offence(path=path, line=line, reason=reason)


def _matches(inside: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(inside, pattern) for pattern in patterns)


def check(root: Path) -> tuple[int, list[Offence]]:
    """Check every file of every member under `root`; return the number of files read and the offences in order."""
    files = 0
    offences: list[Offence] = []
    for member in read_members(root):
        for folder, product in (("src", True), ("tests", False)):
            for path in sorted((member.folder / folder).rglob("*.py")):
                files += 1
                offences.extend(check_file(path, member, product=product))
        graph = read_graph(member.folder / "src")
        if member.module in graph:
            offences.extend(_located(room_offences(graph, member.module)))
            offences.extend(_located(circle_offences(graph, member.module)))
    for name in FLAT_FOLDERS:
        offences.extend(_located(circle_offences(read_graph(root / name, (root / name).glob("*.py")))))
    return files, sorted(offences, key=lambda offence: (str(offence.path), offence.line, offence.reason))


def _located(found: Iterator[tuple[Module, int, str]]) -> Iterator[Offence]:
    return (Offence(path=module.path, line=line, reason=reason) for module, line, reason in found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the offenders and return 1, or say what was checked and return 0."""
    parser = argparse.ArgumentParser(description="Check who imports whom in the workspace.")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parents[1], help="workspace root (default: this one)"
    )
    root: Path = parser.parse_args(arguments).root
    files, offences = check(root)
    for offence in offences:
        print(offence)
    if not files:
        print(f"no Python file under {root / 'packages'}: nothing was checked")
        return 1
    print(f"{files} files checked, {len(offences)} against the arrows of docs/architecture.md")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
