"""The modules of the package as syntax: what their names are bound to, across imports and re-exports."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from check_layers import HOST_MODULES

PACKAGE: Final = "comfy_nodes"
ADAPTER: Final = "comfy_nodes.host"
_TOPS: Final = HOST_MODULES - {"aiohttp"}
Definition = ast.FunctionDef | ast.AsyncFunctionDef
Binding = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(slots=True)
class Module:
    """One file.

    Attributes:
        name: dotted.
        tree: its syntax.
        bound: what its imports bind, to dotted names; those for type checkers included.
        runs: modules that are imported when it is.
        guarded: what it imports inside of a `try`, and does without.
    """

    name: str
    tree: ast.Module
    bound: dict[str, str] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)
    guarded: set[str] = field(default_factory=set)


def is_of_host(dotted: str | None) -> bool:
    """Whether a dotted name begins in a module of the host."""
    return dotted is not None and dotted.partition(".")[0] in _TOPS


class Pack:
    """The package as a whole: names are resolved across its modules."""

    def __init__(self, modules: Mapping[str, Module], ordinary: frozenset[str]) -> None:
        self.modules = modules
        self.ordinary = ordinary
        self.definitions: dict[str, Definition | ast.ClassDef] = {
            f"{module.name}.{statement.name}": statement
            for module in modules.values()
            for statement in module.tree.body
            for statement in definitions(statement)
        }

    def resolve(self, dotted: str) -> str | None:
        """The host's name, or the definition of ours, behind a dotted name; None where it is neither."""
        for _ in range(8):
            if is_of_host(dotted) or dotted in self.definitions or dotted in self.modules:
                return dotted
            module = dotted.rpartition(".")[0]
            while module and module not in self.modules:
                module = module.rpartition(".")[0]
            if not module:
                return None
            name, _, rest = dotted[len(module) + 1 :].partition(".")
            target = self.modules[module].bound.get(name)
            if target is None:
                return None
            dotted = f"{target}.{rest}" if rest else target
        return None


def read_modules(source: Path) -> Iterator[Module]:
    """Every module of the package below `source`."""
    for path in sorted((source / PACKAGE).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        module = Module(name=name, tree=ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
        for statement in ast.walk(module.tree):
            module.bound |= _bound_by(statement)
            if isinstance(statement, ast.Try):
                module.guarded |= {name for each in statement.body for name in _bound_by(each).values()}
        at_start = [each for statement in module.tree.body for each in _outside(statement)]
        for statement in at_start:
            if isinstance(statement, ast.ImportFrom) and statement.module:
                module.runs |= {statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)}
            elif isinstance(statement, ast.Import):
                module.runs |= {alias.name for alias in statement.names}
        yield module


def _outside(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a statement that run when its module is imported."""
    if isinstance(node, Definition):
        return
    yield node
    for child in run_by(node) if isinstance(node, ast.stmt) and is_typing(node) else ast.iter_child_nodes(node):
        yield from _outside(child)


def is_typing(statement: ast.stmt) -> bool:
    """Whether a branch is for type checkers alone; its `else` runs."""
    return (
        isinstance(statement, ast.If) and isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"
    )


def _bound_by(statement: ast.AST) -> dict[str, str]:
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
            for alias in statement.names
        }
    if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
        return {alias.asname or alias.name: f"{statement.module}.{alias.name}" for alias in statement.names}
    return {}


def definitions(statement: ast.stmt) -> Iterator[Definition | ast.ClassDef]:
    """Definitions at the top of a module, those in branches and tries included."""
    if isinstance(statement, Binding):
        yield statement
    else:
        for child in run_by(statement):
            yield from definitions(child)


def run_by(statement: ast.stmt) -> Iterator[ast.stmt]:
    """The statements inside of another that run, not those for type checkers."""
    if isinstance(statement, ast.If) and is_typing(statement):
        yield from statement.orelse
    else:
        yield from (child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt))


def members(node: ast.AST) -> set[str]:
    """What a class of ours has itself: its methods, and the attributes that it annotates."""
    found: set[str] = set()
    for each in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(each, Binding):
            found.add(each.name)
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            found.add(each.target.id)
    return found
