"""A checkout of the host, read as source: which names its modules and classes bind, and with which parameters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from comfy_nodes.contract._signature import Signature

LARGEST_BYTES: Final = 8 << 20
"""No file of the host comes near it; a larger one is not read."""

_DEEPEST: Final = 12
"""Re-exports that are followed; a circle ends here."""

_KEEPS_PARAMETERS: Final = frozenset({"no_grad", "inference_mode", "classmethod", "staticmethod", "override"})
Definition = ast.FunctionDef | ast.AsyncFunctionDef
Binding = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a dotted name ends.

    Attributes:
        node: the definition, or None where the name is bound to something that source does not show.
        module: in which module.
        owner: the class that it was looked up in.
        is_module: the name is that of the module itself.
    """

    node: Definition | ast.ClassDef | None
    module: str
    owner: ast.ClassDef | None = None
    is_module: bool = False

    @property
    def signature(self) -> Signature | None:
        """Parameters of a call by this name; None where source does not say."""
        if not isinstance(self.node, Definition):
            return None
        kinds = {_last_name(each) for each in self.node.decorator_list}
        if not kinds <= _KEEPS_PARAMETERS:
            return None
        return Signature.of(self.node.args, bound=self.owner is not None and "staticmethod" not in kinds)


class Unreadable(Exception):
    """A file of the host cannot be read as Python; what is in it is unknown, not missing."""


class Checkout:
    """The source of one host.

    Args:
        folder: of its main.py.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: dict[str, ast.Module | None] = {}
        self._attributes: dict[ast.ClassDef, frozenset[str]] = {}

    def find(self, dotted: str) -> Found | None:
        """The end of a dotted name, through re-exports and base classes; None where there is no such name.

        Raises:
            Unreadable: a file on the way is no Python, or too large.
        """
        parts = dotted.split(".")
        for count in range(len(parts), 0, -1):
            module = ".".join(parts[:count])
            if self._is_module(module):
                return self._walk(module, parts[count:], _DEEPEST)
        return None

    def signature(self, dotted: str) -> Signature | None:
        """Parameters of a function, a method, or what makes an object of a class; None where source does not say.

        Raises:
            Unreadable: a file on the way is no Python, or too large.
        """
        found = self.find(dotted)
        if found is not None and isinstance(found.node, ast.ClassDef):
            if any(_last_name(each) == "dataclass" for each in found.node.decorator_list):
                return None
            found = self._member(found.node, found.module, "__init__", _DEEPEST)
        return None if found is None else found.signature

    def mentions(self, names: Sequence[str], places: Sequence[str], *, pattern: str) -> frozenset[str]:
        """Which of some names stand anywhere in the host's code in a form that a regular expression says.

        Args:
            names: what is looked for.
            places: files, and folders whose own files are read.
            pattern: with ``NAMES`` where one of the names stands, in a group.
        """
        wanted = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
        compiled = re.compile(pattern.replace("NAMES", f"({wanted})"), re.MULTILINE)
        return (
            frozenset(found for text in self._texts(places) for found in compiled.findall(text))
            if names
            else frozenset()
        )

    def _texts(self, places: Sequence[str]) -> Iterator[str]:
        for place in places:
            path = self.folder / place
            for file in sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
                if file.is_file() and file.stat().st_size <= LARGEST_BYTES:
                    yield file.read_text(encoding="utf-8", errors="replace")

    def _path(self, module: str) -> Path | None:
        base = self.folder.joinpath(*module.split("."))
        return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)

    def _is_module(self, module: str) -> bool:
        return self._path(module) is not None or self.folder.joinpath(*module.split(".")).is_dir()

    def _tree(self, module: str) -> ast.Module | None:
        if module not in self._modules:
            path = self._path(module)
            try:
                if path is not None and path.stat().st_size > LARGEST_BYTES:
                    raise Unreadable(f"{path} is larger than {LARGEST_BYTES >> 20} MiB")
                self._modules[module] = None if path is None else ast.parse(path.read_bytes(), filename=str(path))
            except (OSError, SyntaxError, ValueError, RecursionError) as error:
                raise Unreadable(f"{path} cannot be read: {error}") from error
        return self._modules[module]

    def _walk(self, module: str, parts: Sequence[str], left: int) -> Found | None:
        found = Found(node=None, module=module, is_module=True)
        for name in parts:
            if found.is_module:
                step = self._bound(found.module, name, left)
            elif isinstance(found.node, ast.ClassDef):
                step = self._member(found.node, found.module, name, left)
            else:
                return found  # an attribute of what source does not show
            if step is None:
                return None
            found = step
        return found

    def _bound(self, module: str, name: str, left: int) -> Found | None:
        """What a name is bound to at the top of a module."""
        tree = self._tree(module)
        unknown: Found | None = None
        for statement in () if tree is None or left == 0 else _top_level(tree.body):
            if isinstance(statement, Binding) and statement.name == name:
                return Found(node=statement, module=module)
            if isinstance(statement, ast.ImportFrom):
                source = _absolute(statement, module, is_package=self._is_package(module))
                for alias in statement.names:
                    if alias.name == "*":
                        starred = self._bound(source, name, left - 1) if self._is_module(source) else None
                        unknown = starred or unknown
                    elif (alias.asname or alias.name) == name:
                        return self._imported(source, alias.name, left)
            elif isinstance(statement, ast.Import):
                for alias in statement.names:
                    if (alias.asname or alias.name.partition(".")[0]) == name:
                        whole = alias.name if alias.asname else name
                        return Found(node=None, module=whole, is_module=self._is_module(whole))
            elif name in _targets(statement):
                unknown = self._assigned(statement, module, left) or Found(node=None, module=module)
        if unknown is None and self._is_module(f"{module}.{name}"):
            return Found(node=None, module=f"{module}.{name}", is_module=True)
        return unknown

    def _imported(self, source: str, name: str, left: int) -> Found | None:
        if not self._is_module(source):
            return Found(node=None, module=source)  # of a library
        return self._bound(source, name, left - 1)

    def _assigned(self, statement: ast.stmt, module: str, left: int) -> Found | None:
        """What an assignment of one name to another leads to."""
        value = getattr(statement, "value", None)
        if not isinstance(value, ast.Name):
            return None
        return self._bound(module, value.id, left - 1)

    def _member(self, node: ast.ClassDef, module: str, name: str, left: int) -> Found | None:
        """What a class or one of its bases has under a name; unknown where a base is a library's."""
        if left == 0:
            return Found(node=None, module=module)
        for statement in _top_level(node.body):
            if isinstance(statement, Binding) and statement.name == name:
                return Found(node=statement, module=module, owner=node)
            if name in _targets(statement):
                return Found(node=None, module=module, owner=node)
        if node not in self._attributes:
            self._attributes[node] = _own_attributes(node)
        if name in self._attributes[node]:
            return Found(node=None, module=module, owner=node)
        is_open = False
        for base in node.bases:
            resolved = self._base(base, module, left)
            if resolved is None or not isinstance(resolved.node, ast.ClassDef):
                is_open = is_open or _last_name(base) not in ("object", "ABC")
                continue
            found = self._member(resolved.node, resolved.module, name, left - 1)
            if found is not None and (found.node is not None or found.owner is not None):
                return found
            is_open = is_open or found is not None
        return Found(node=None, module=module) if is_open else None

    def _base(self, base: ast.expr, module: str, left: int) -> Found | None:
        parts: list[str] = []
        while isinstance(base, ast.Attribute):
            parts.append(base.attr)
            base = base.value
        if not isinstance(base, ast.Name):
            return None
        start = self._bound(module, base.id, left - 1)
        if start is None or not parts:
            return start
        if isinstance(start.node, ast.ClassDef):
            member = self._member(start.node, start.module, parts[-1], left - 1)
            return member if len(parts) == 1 else None
        return self.find(".".join([start.module, *reversed(parts)]))

    def _is_package(self, module: str) -> bool:
        path = self._path(module)
        return path is not None and path.name == "__init__.py"


def _top_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that bind names where they stand: branches, tries and withs included, the last binding first."""
    for statement in reversed(body):
        inner = [
            each
            for field in ("body", "orelse", "finalbody", "handlers")
            for each in getattr(statement, field, ())
            if not isinstance(statement, Binding)
        ]
        yield from _top_level(
            [line for each in inner for line in (each.body if isinstance(each, ast.ExceptHandler) else [each])]
        )
        yield statement


def _targets(statement: ast.stmt) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {
        each.id for target in targets if target is not None for each in ast.walk(target) if isinstance(each, ast.Name)
    }


def _own_attributes(node: ast.ClassDef) -> frozenset[str]:
    """Attributes that the methods of a class give its objects."""
    return frozenset(
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    )


def _absolute(statement: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if not statement.level:
        return statement.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - statement.level + is_package]
    return ".".join([*kept, *([statement.module] if statement.module else [])])


def _last_name(expression: ast.expr) -> str:
    if isinstance(expression, ast.Call):
        expression = expression.func
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")
