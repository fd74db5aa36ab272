"""The import graph of a folder of Python files, read from the syntax trees alone; nothing is imported.

An import counts wherever it stands: at the top, inside a function, under ``TYPE_CHECKING`` and as a literal
``import_module("x")``. `read_graph` resolves the imports of one folder against the files of that folder, and `circles`
finds the groups of nodes that reach one another.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """One import: from `module` the `names` are imported (empty for a plain import).

    Attributes:
        module: dotted name without the leading dots (empty for ``from . import x``).
        names: imported names.
        line: line of the statement, from 1.
        level: number of leading dots, 0 for an absolute import.
    """

    module: str
    names: tuple[str, ...]
    line: int
    level: int = 0

    @property
    def top(self) -> str:
        """Top-level package of an absolute import."""
        return self.module.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One file and the modules of the same folder that it imports.

    Attributes:
        name: dotted name; a package's ``__init__.py`` carries the package's name.
        path: the file.
        imports: name of each imported module of the same graph -> line of the first import.
        docstring: what the file says of itself, or ``""``.
    """

    name: str
    path: Path
    imports: Mapping[str, int]
    docstring: str


def imports_of(tree: ast.Module) -> Iterator[Import]:
    """Yield the imports of a file, those by a literal ``import_module("x")`` or ``__import__("x")`` included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module=alias.name, names=(), line=node.lineno)
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            yield Import(module=node.module or "", names=names, line=node.lineno, level=node.level)
        elif isinstance(node, ast.Call) and _callee(node) in {"import_module", "__import__"} and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                yield Import(module=first.value, names=(), line=node.lineno)


def _callee(call: ast.Call) -> str:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else ""


def read_graph(folder: Path, files: Iterable[Path] | None = None) -> dict[str, Module]:
    """Read the modules of a folder and the imports among them.

    Args:
        folder: where module names begin (``packages/alloc-spec/src``, ``tools``).
        files: the files to read; default: every ``*.py`` below `folder`.

    Returns:
        dotted name -> module, sorted by name.
    """
    paths = sorted(folder.rglob("*.py")) if files is None else sorted(files)
    trees = {_name(path, folder): (path, ast.parse(path.read_text(encoding="utf-8"), str(path))) for path in paths}
    modules = {}
    for name, (path, tree) in sorted(trees.items()):
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        imports: dict[str, int] = {}
        for found in sorted(imports_of(tree), key=lambda found: found.line):
            for target in _targets(found, package, trees):
                if target != name:
                    imports.setdefault(target, found.line)
        modules[name] = Module(name=name, path=path, imports=imports, docstring=ast.get_docstring(tree) or "")
    return modules


def _name(path: Path, folder: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _targets(found: Import, package: str, known: Mapping[str, object]) -> Iterator[str]:
    """Yield the modules of the graph that one import statement names, the most exact name of each."""
    base = found.module
    if found.level:
        above = package.split(".")[: len(package.split(".")) - found.level + 1]
        base = ".".join((*above, base) if base else above)
    inner = [f"{base}.{name}" for name in found.names]
    yield from (name for name in inner if name in known)
    if base in known and (not inner or any(name not in known for name in inner)):
        yield base


def circles(edges: Mapping[str, Iterable[str]]) -> list[tuple[str, ...]]:
    """Return the groups of two or more nodes that reach one another, each sorted, in order of their first name."""
    reach = {node: _reachable(node, edges) for node in edges}
    groups = {
        tuple(sorted({node, *(other for other in reach[node] if node in reach.get(other, ()))}))
        for node in edges
        if node in reach[node]
    }
    return sorted(group for group in groups if len(group) > 1)


def _reachable(start: str, edges: Mapping[str, Iterable[str]]) -> frozenset[str]:
    seen: set[str] = set()
    waiting = list(edges.get(start, ()))
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(edges.get(node, ()))
    return frozenset(seen)
