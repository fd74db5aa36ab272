"""Branches that depend on a length: what a few probes cannot exclude, because another length may take the other way."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator

from torch import nn


def length_branches(modules: Iterable[nn.Module]) -> list[str]:
    """Places in the forwards of these modules where a size decides what runs; one sentence each.

    Only the source of `forward` is read: a branch in a function that it calls is not found.

    Examples:
        >>> length_branches([nn.Linear(2, 2)])
        []
    """
    kinds = {type(module) for module in modules}
    return [found for kind in sorted(kinds, key=lambda kind: kind.__qualname__) for found in _of_class(kind)]


def _of_class(kind: type[nn.Module]) -> Iterator[str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind.forward))
    except (OSError, TypeError):
        yield f"{kind.__qualname__}.forward has no source to look at"
        return
    tree = ast.parse(source)
    sizes = _names_of_sizes(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While) and _is_size(node.test, sizes):
            yield f"{kind.__qualname__}.forward branches on a size: {ast.unparse(node.test)}"


def _names_of_sizes(tree: ast.AST) -> set[str]:
    """Local names that hold sizes, or what was computed from them."""
    names: set[str] = set()
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr)]
    before = -1
    while len(names) > before:
        before = len(names)
        for node in assignments:
            if node.value is not None and _is_number_of_sizes(node.value, names):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def _is_number_of_sizes(value: ast.expr, names: set[str]) -> bool:
    """Sizes, and arithmetic with them; a call that is given a size makes tensors of it, not another size."""
    if isinstance(value, ast.Call):
        function = value.func
        named = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        return named in {"size", "numel"} or (
            named in {"min", "max", "int", "divmod"} and any(_is_number_of_sizes(part, names) for part in value.args)
        )
    if isinstance(value, ast.Attribute):
        return value.attr == "shape"
    if isinstance(value, ast.Name):
        return value.id in names
    if isinstance(value, ast.Subscript | ast.Starred):
        return _is_number_of_sizes(value.value, names)
    if isinstance(value, ast.BinOp):
        return _is_number_of_sizes(value.left, names) or _is_number_of_sizes(value.right, names)
    if isinstance(value, ast.Tuple):
        return any(_is_number_of_sizes(part, names) for part in value.elts)
    return isinstance(value, ast.Compare) and _is_size(value, names)


def _is_size(test: ast.expr, names: set[str]) -> bool:
    return any(isinstance(part, ast.expr) and _is_number_of_sizes(part, names) for part in _numbers(test))


def _numbers(test: ast.expr) -> Iterator[ast.expr]:
    """What a condition compares."""
    if isinstance(test, ast.BoolOp):
        for part in test.values:
            yield from _numbers(part)
    elif isinstance(test, ast.UnaryOp):
        yield from _numbers(test.operand)
    elif isinstance(test, ast.Compare):
        yield from (test.left, *test.comparators)
    else:
        yield test
