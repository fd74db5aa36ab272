"""What the pack touches of the host, by function: symbols, calls, replaced methods, attributes of the host's objects.

Only syntax trees are read.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from host_pack import ADAPTER, Module, Pack, members, read_modules
from host_reader import Reader, Use


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A top-level function or class, or the code of a module itself (with an empty name).

    Attributes:
        module: dotted.
        name: of the definition.
        uses: of the host.
        needs: other units that run or may run when this one does.
    """

    module: str
    name: str
    uses: frozenset[Use]
    needs: frozenset[tuple[str, str]]


def units(source: Path, ordinary: frozenset[str]) -> dict[tuple[str, str], Unit]:
    """Every unit of the package below `source`, by module and name.

    Args:
        source: the folder that holds the package.
        ordinary: attributes that any object of torch or Python may have, so that they say nothing about the host.
    """
    modules = {module.name: module for module in read_modules(source)}
    pack = Pack(modules, ordinary)
    return {(unit.module, unit.name): unit for module in modules.values() for unit in _units_of(pack, module)}


def reached(all_units: Mapping[tuple[str, str], Unit], roots: Sequence[tuple[str, str]]) -> frozenset[tuple[str, str]]:
    """Everything that runs or may run when these units do."""
    found: set[tuple[str, str]] = set()
    left = list(roots)
    while left:
        key = left.pop()
        if key in found or key not in all_units:
            continue
        found.add(key)
        left += [*all_units[key].needs, (key[0], "")]
    return frozenset(found)


def _units_of(pack: Pack, module: Module) -> Iterator[Unit]:
    """The module's own code, then its functions and classes."""
    own = Reader(pack, module, None)
    for statement in module.tree.body:
        own.read_at_import(statement)
    imported = {(name, "") for name in module.runs if name in pack.modules}
    parents = {(module.name.rpartition(".")[0], "")}
    yield Unit(module=module.name, name="", uses=frozenset(own.uses), needs=frozenset(imported | parents | own.bases))
    for dotted, definition in pack.definitions.items():
        if dotted.rpartition(".")[0] == module.name:
            reader = Reader(pack, module, definition)
            reader.read()
            yield Unit(
                module=module.name,
                name=definition.name,
                uses=frozenset(reader.uses),
                needs=frozenset(reader.needs),
            )


def members_of_adapter(source: Path) -> frozenset[str]:
    """What classes of the adapter have themselves: an object of the host that has it as well is one of ours."""
    return frozenset(
        name
        for module in read_modules(source)
        if module.name.startswith(ADAPTER)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
        for name in (*members(node), *_given_to_self(node))
    )


def _given_to_self(node: ast.ClassDef) -> set[str]:
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.ctx, ast.Store)
        and isinstance(each.value, ast.Name)
        and each.value.id == "self"
    }
