"""The package with one ordering call taken out: what a forgotten wait, event or record_stream would look like."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "device_placement"
ORDERING_CALLS = ("wait_event", "record", "record_stream", "synchronize", "arrive", "follow", "release", "wait")
"""Methods that order one thing after another, or tell somebody else when to."""

ORDERED_MODULES = (
    "copying._streams",
    "copying._accelerator",
    "engine._streamed_unit",
    "engine._engine",
    "engine._change_watch",
)


@dataclass(frozen=True)
class Mutant:
    """One ordering call that is left out.

    Attributes:
        module: the module it is in.
        function: the function or method it is in.
        text: the statement.
        line: its line.
    """

    module: str
    function: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}.{self.function}: {self.text}"


def _ordering_call(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr | ast.Assign) or not isinstance(statement.value, ast.Call):
        return False
    function = statement.value.func
    if not isinstance(function, ast.Attribute) or function.attr not in ORDERING_CALLS:
        return False
    # Locks order threads, not devices, and the order of calls is a record of another kind.
    return not ast.unparse(function.value).endswith(("lock", "_order"))


def _source(module: str) -> Path:
    spec = importlib.util.find_spec(f"{PACKAGE}.{module}")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin)


def mutants(modules: Sequence[str] = ORDERED_MODULES) -> list[Mutant]:
    """Every ordering call of the given modules."""
    found = []
    for module in modules:
        tree = ast.parse(_source(module).read_text(encoding="utf-8"))
        for scope in ast.walk(tree):
            if not isinstance(scope, ast.ClassDef):
                continue
            for function in scope.body:
                if isinstance(function, ast.FunctionDef):
                    found += [
                        Mutant(module, f"{scope.name}.{function.name}", ast.unparse(statement), statement.lineno)
                        for statement in ast.walk(function)
                        if isinstance(statement, ast.stmt) and _ordering_call(statement)
                    ]
    return found


class _Remove(ast.NodeTransformer):
    def __init__(self, line: int) -> None:
        self.line = line

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return ast.copy_location(ast.Pass(), node) if node.lineno == self.line and _ordering_call(node) else node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        if node.lineno == self.line and _ordering_call(node):
            node.value = ast.copy_location(ast.Constant(0.0), node.value)
        return node


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, line: int) -> None:
        super().__init__(name, path)
        self.line = line

    def get_code(self, fullname: str) -> types.CodeType:
        """Compile afresh: the cache holds the unchanged module."""
        tree = _Remove(self.line).visit(ast.parse(Path(self.path).read_text(encoding="utf-8")))
        code: types.CodeType = compile(ast.fix_missing_locations(tree), self.path, "exec")
        return code


class _Finder:
    def __init__(self, mutant: Mutant) -> None:
        self.name = f"{PACKAGE}.{mutant.module}"
        self.path = str(_source(mutant.module))
        self.line = mutant.line

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Only for the changed module."""
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.path, loader=_Loader(name, self.path, self.line))


@contextlib.contextmanager
def mutated(mutant: Mutant) -> Iterator[types.ModuleType]:
    """A copy of the whole package in which one call is missing; the true one is back afterwards."""
    finder = _Finder(mutant)
    own = [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]
    saved = {name: sys.modules.pop(name) for name in own}
    sys.meta_path.insert(0, finder)
    try:
        yield importlib.import_module(PACKAGE)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
        sys.modules.update(saved)
