"""What one function or class touches of the host: walks its statements and follows what names stand for.

`Any` in the host adapter means an object of the host: nothing else there is untyped.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from comfy_nodes.contract import Call, Signature
from host_pack import ADAPTER, Definition, Module, Pack, is_of_host, is_typing, members, run_by

VALUE: Final = "<an object of the host>"
"""What an expression stands for when it is an object of the host whose class the code does not name."""

PARAMETERS: Final[Mapping[str, str]] = {"io": "comfy_api.latest.io"}
"""Parameters that are handed a module of the host under this name everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One place that touches the host.

    Attributes:
        name: dotted; of an attribute just its name.
        kind: ``symbol``, ``override``, ``member`` or ``attribute``.
        call: shape of the call, if it is called.
        parameters: of an override, without ``self``.
        asked: the code asks whether it is there.
    """

    name: str
    kind: str
    call: Call | None = None
    parameters: Signature | None = None
    asked: bool = False


class Reader:
    """One unit: walks its statements in order and remembers which names stand for something of the host."""

    def __init__(self, pack: Pack, module: Module, definition: Definition | ast.ClassDef | None) -> None:
        self.pack = pack
        self.module = module
        self.definition = definition
        self.names: dict[str, str | None] = {}
        self.uses: set[Use] = set()
        self.needs: set[tuple[str, str]] = set()
        self.bases: set[tuple[str, str]] = set()
        self.asks = False
        self.host_class: str | None = None
        self.own_members: set[str] = set()
        self.method = ""

    def read(self) -> None:
        """Read a function or a class as a whole."""
        if self.definition is None:
            return
        self.asks = any(_asks(each) for each in ast.walk(self.definition))
        self._visit(self.definition)

    def read_at_import(self, statement: ast.stmt) -> None:
        """Read what runs when the module is imported."""
        if isinstance(statement, Definition):
            return
        if is_typing(statement):
            for child in run_by(statement):
                self.read_at_import(child)
            return
        if isinstance(statement, ast.ClassDef):
            for base in (*statement.bases, *statement.decorator_list):
                dotted = self._evaluate(base)
                if dotted in self.pack.definitions:
                    self.bases.add((dotted.rpartition(".")[0], dotted.rpartition(".")[2]))
            return
        self.asks = isinstance(statement, ast.Try)
        self._visit(statement)

    def symbol(self, expression: ast.expr) -> str | None:
        """The dotted name that an expression spells, without noting a use."""
        parts: list[str] = []
        while isinstance(expression, ast.Attribute):
            parts.append(expression.attr)
            expression = expression.value
        if not isinstance(expression, ast.Name):
            return None
        known = self.names.get(expression.id, self._global(expression.id))
        if known is None or known == VALUE:
            return known
        return self.pack.resolve(".".join([known, *reversed(parts)])) if parts else known

    def _global(self, name: str) -> str | None:
        target = self.module.bound.get(name, f"{self.module.name}.{name}")
        return self.pack.resolve(target) or (target if target in self.pack.modules else None)

    def _note(self, name: str, kind: str, *, call: Call | None = None, asked: bool = False) -> None:
        last = name.rpartition(".")[2]
        if (kind == "attribute" and name in self.pack.ordinary) or (last.startswith("__") and last != "__init__"):
            return
        self.uses.add(Use(name=name, kind=kind, call=call, asked=asked or self.asks or self._is_guarded(name)))

    def _is_guarded(self, name: str) -> bool:
        """Whether a symbol comes from an import that may fail."""
        return any(name == guarded or name.startswith(f"{guarded}.") for guarded in self.module.guarded)

    def _visit(self, node: ast.AST) -> None:
        """Statements, and expressions in them that stand alone."""
        if isinstance(node, ast.ClassDef):
            self._visit_class(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            self._visit_function(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._visit_import(node)
        elif isinstance(node, ast.Assign):
            value = self._evaluate(node.value)
            for target in node.targets:
                self._bind(target, value)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            self._bind(node.target, None if node.value is None else self._evaluate(node.value))
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
            self._bind(node.target, VALUE if self._evaluate(node.iter) == VALUE else None)
            for child in [*getattr(node, "body", ()), *getattr(node, "orelse", ()), *getattr(node, "ifs", ())]:
                self._visit(child)
        elif isinstance(node, ast.withitem):
            value = self._evaluate(node.context_expr)
            if node.optional_vars is not None:
                self._bind(node.optional_vars, value if value == VALUE else None)
        elif isinstance(node, ast.expr):
            self._evaluate(node)
        elif isinstance(node, ast.AST) and not isinstance(node, (ast.expr_context, ast.arguments)):
            for child in ast.iter_child_nodes(node):
                self._visit(child)

    def _visit_class(self, node: ast.ClassDef) -> None:
        before = (self.host_class, self.own_members)
        bases = [self._evaluate(base) for base in node.bases]
        for decorator in node.decorator_list:
            self._evaluate(decorator)
        self.host_class = next((base for base in bases if base is not None and is_of_host(base)), None)
        self.own_members = members(node)
        for base in bases:
            if base in self.pack.definitions:
                self.own_members |= members(self.pack.definitions[base])
        for statement in node.body:
            self._visit(statement)
            if isinstance(statement, Definition) and self.host_class is not None:
                self._note_override(statement)
        self.host_class, self.own_members = before

    def _note_override(self, method: Definition) -> None:
        if method.name.startswith("__") or any(getattr(each, "id", "") == "property" for each in method.decorator_list):
            return
        is_static = any(getattr(each, "id", "") == "staticmethod" for each in method.decorator_list)
        parameters = Signature.of(method.args, bound=not is_static)
        name = f"{self.host_class}.{method.name}"
        calls_it = any(
            isinstance(each, ast.Attribute) and each.attr == method.name and _is_super(each.value)
            for each in ast.walk(method)
        )
        kind = "override" if calls_it else "perhaps override"
        self.uses.add(Use(name=name, kind=kind, parameters=parameters, asked=self._is_guarded(name)))

    def _visit_function(self, node: Definition | ast.Lambda) -> None:
        names = dict(self.names)
        arguments = node.args
        inside = self.module.name.startswith(ADAPTER)
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg):
            if each is None:
                continue
            is_any = inside and isinstance(each.annotation, ast.Name) and each.annotation.id == "Any"
            self.names[each.arg] = VALUE if is_any else PARAMETERS.get(each.arg)
        for default in (*arguments.defaults, *arguments.kw_defaults, *getattr(node, "decorator_list", ())):
            if default is not None:
                self._evaluate(default)
        for child in node.body if isinstance(node.body, list) else [node.body]:
            self._visit(child)
        self.names = names

    def _visit_import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        else:
            dotted = [f"{node.module}.{alias.name}" for alias in node.names if node.module and not node.level]
        for name in dotted:
            if is_of_host(name):
                self._note(name, "symbol")
            elif (resolved := self.pack.resolve(name)) is not None:
                self._need(resolved)

    def _bind(self, target: ast.expr, value: str | None) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, (ast.Tuple, ast.List)):
            for each in target.elts:
                self._bind(each, VALUE if value == VALUE else None)
        elif isinstance(target, ast.Starred):
            self._bind(target.value, value)
        else:
            self._evaluate(target)

    def _need(self, dotted: str) -> None:
        if dotted in self.pack.definitions:
            module, _, name = dotted.rpartition(".")
            self.needs.add((module, name))
        elif dotted in self.pack.modules:
            self.needs.add((dotted, ""))

    def _evaluate(self, node: ast.expr) -> str | None:
        """What an expression stands for; every use of the host in it is noted."""
        if isinstance(node, ast.Name):
            return self._seen(self.symbol(node))
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            value = self._evaluate(node.value)
            self._evaluate(node.slice)
            return VALUE if value == VALUE or is_of_host(value) else None
        if isinstance(node, ast.IfExp):
            self._evaluate(node.test)
            values = {self._evaluate(node.body), self._evaluate(node.orelse)}
            if len(values) == 1:
                return values.pop()
            return VALUE if any(value == VALUE or is_of_host(value) for value in values) else None
        if isinstance(node, ast.BoolOp):
            values = {self._evaluate(each) for each in node.values}
            return VALUE if VALUE in values else None
        if isinstance(node, ast.Await):
            return self._evaluate(node.value)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            names = dict(self.names)
            for generator in node.generators:
                self._visit(generator)
            for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
                self._evaluate(part)
            self.names = names
            return None
        if isinstance(node, (ast.Lambda, ast.NamedExpr)):
            self._visit(node)
            return None
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.expr, ast.keyword)):
                self._evaluate(child.value if isinstance(child, ast.keyword) else child)
        return None

    def _seen(self, dotted: str | None) -> str | None:
        if dotted is not None and dotted != VALUE:
            if is_of_host(dotted):
                if "." in dotted:
                    self._note(dotted, "symbol")
            else:
                self._need(dotted)
        return dotted

    def _attribute(self, node: ast.Attribute) -> str | None:
        spelled = self.symbol(node)
        if spelled is not None and spelled != VALUE:
            return self._seen(spelled)
        if isinstance(node.value, ast.Name) and node.value.id == "self" and self.host_class is not None:
            if node.attr in self.own_members:
                return None
            self._note(f"{self.host_class}.{node.attr}", "member")
            return VALUE
        value = self._evaluate(node.value)
        if value == VALUE:
            self._note(node.attr, "attribute")
            return VALUE
        if value is not None and is_of_host(value):
            return self._seen(f"{value}.{node.attr}")
        return None

    def _call(self, node: ast.Call) -> str | None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("getattr", "hasattr", "setattr") and len(node.args) >= 2:
            return self._asked_for(name, node)
        if isinstance(node.func, ast.Attribute) and _is_super(node.func.value) and self.host_class is not None:
            function: str | None = f"{self.host_class}.{node.func.attr}"
        else:
            function = self._evaluate(node.func)
        for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
            self._evaluate(argument.value if isinstance(argument, ast.Starred) else argument)
        if function is None:
            return None
        if function == VALUE:
            return VALUE
        if is_of_host(function):
            self._note(function, "symbol", call=_shape(node))
            return VALUE
        return self._seen(door(self.pack, function)) if function in self.pack.definitions else None

    def _asked_for(self, name: str, node: ast.Call) -> str | None:
        owner = self._evaluate(node.args[0])
        for argument in node.args[1:]:
            self._evaluate(argument)
        text = node.args[1]
        if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
            return VALUE if owner == VALUE else None
        asked = name == "hasattr" or (name == "getattr" and len(node.args) == 3)
        if owner == VALUE:
            self._note(text.value, "attribute", asked=asked)
        elif owner is not None and is_of_host(owner):
            self._note(f"{owner}.{text.value}", "symbol", asked=asked)
        elif isinstance(node.args[0], ast.Name) and node.args[0].id == "self" and self.host_class is not None:
            self._note(f"{self.host_class}.{text.value}", "member", asked=asked)
        elif self.module.name.startswith(ADAPTER) and name != "setattr":
            self._note(text.value, "attribute", asked=True)
        return VALUE if owner == VALUE or is_of_host(owner) else None


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _asks(node: ast.AST) -> bool:
    """Whether code asks what this host takes: everything of the host beside the question is optional then."""
    if isinstance(node, ast.Call):
        function = node.func
        return (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")) == "accepts"
    return False


def _shape(node: ast.Call) -> Call:
    return Call(
        positional=sum(not isinstance(argument, ast.Starred) for argument in node.args),
        keywords=tuple(sorted(keyword.arg for keyword in node.keywords if keyword.arg is not None)),
        is_open=any(isinstance(argument, ast.Starred) for argument in node.args)
        or any(keyword.arg is None for keyword in node.keywords),
    )


def door(pack: Pack, dotted: str) -> str | None:
    """What of the host a function of ours returns: a symbol, `VALUE`, or None."""
    definition = pack.definitions.get(dotted)
    if not isinstance(definition, Definition):
        return None
    module = pack.modules[dotted.rpartition(".")[0]]
    returned = [each.value for each in ast.walk(definition) if isinstance(each, ast.Return) and each.value is not None]
    if len(returned) == 1 and isinstance(returned[0], (ast.Attribute, ast.Name)):
        symbol = Reader(pack, module, definition).symbol(returned[0])
        if is_of_host(symbol):
            return symbol
    inside = module.name.startswith(ADAPTER)
    return VALUE if inside and isinstance(definition.returns, ast.Name) and definition.returns.id == "Any" else None
