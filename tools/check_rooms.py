"""The folder arrows inside a package: what each room (a sub-package) may import, and that nothing runs in a circle.

A room says so in the docstring of its ``__init__.py``, in a paragraph that ends it::

    \"\"\"Copy the bytes of units between devices.

    May import: _errors, _hardware, planning.
    \"\"\"

The names are the room's neighbours: the modules and rooms of the folder that holds it, written as their files are
(``_errors`` for ``_errors.py``). A room that needs none writes ``May import: nothing.`` Inside the room imports are
free, and a room inside a room has a separate sentence; what it imports from outside the outer room, the
outer room's sentence must allow. Used by tools/check_layers.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from import_graph import Module, circles

_SENTENCE = re.compile(r"^May import: (?P<names>[^.]+)\.\s*\Z", re.MULTILINE)


def room_offences(graph: Mapping[str, Module], package: str) -> Iterator[tuple[Module, int, str]]:
    """Yield (module, line, reason) for each import that a room's sentence does not allow, and for a wrong sentence."""
    rooms = _rooms(graph, package)
    neighbours = {
        name: {other for other in graph if other.rpartition(".")[0] == _above(name)} - {name} for name in rooms
    }
    allowed: dict[str, frozenset[str]] = {}
    for room in sorted(rooms):
        names = may_import(graph[room].docstring)
        if names is None:
            yield (graph[room], 1, f"the room {room} does not end its docstring with {_FORM}")
            continue
        allowed[room] = frozenset(f"{_above(room)}.{name}" for name in names)
        for name in sorted(allowed[room] - neighbours[room]):
            near = ", ".join(sorted(other.rpartition(".")[2] for other in neighbours[room]))
            yield (
                graph[room],
                1,
                f"{room} may import {name.rpartition('.')[2]}, which is not beside it; beside it: {near}",
            )
    for module in graph.values():
        for target, line in module.imports.items():
            left, entered = _crossing(module.name, target, rooms)
            if left in allowed and entered is not None and entered not in allowed[left]:
                may = ", ".join(sorted(name.rpartition(".")[2] for name in allowed[left])) or "nothing"
                yield (module, line, f"{left} imports {entered}, but may import {may} (the docstring of its __init__)")


_FORM = "'May import: name, name.' (or 'May import: nothing.')"


def circle_offences(graph: Mapping[str, Module], package: str = "") -> Iterator[tuple[Module, int, str]]:
    """Yield one offence for each circle among modules and, inside `package`, for each circle among rooms.

    An import inside a function or under ``TYPE_CHECKING`` counts like any other.
    """
    for group in circles({name: module.imports for name, module in graph.items()}):
        first = graph[group[0]]
        line = min(line for target, line in first.imports.items() if target in group)
        yield (first, line, f"the modules {', '.join(group)} import one another in a circle")
    rooms = _rooms(graph, package)
    for level in sorted({package, *rooms} if package else ()):
        arrows: dict[str, set[str]] = {}
        for module in graph.values():
            for target in module.imports:
                here, there = _child(module.name, level), _child(target, level)
                if here and there and here != there:
                    arrows.setdefault(here, set()).add(there)
        for group in circles(arrows):
            if rooms & set(group):
                yield (graph[level], 1, f"the rooms {', '.join(group)} import one another in a circle")


def may_import(docstring: str) -> tuple[str, ...] | None:
    """Return the names of a room's sentence, ``()`` for nothing, None when the docstring does not end with one."""
    found = _SENTENCE.search(docstring)
    if found is None:
        return None
    names = tuple(name.strip().strip("`") for name in found["names"].split(","))
    return () if names == ("nothing",) else names


def _rooms(graph: Mapping[str, Module], package: str) -> set[str]:
    return {name for name, module in graph.items() if module.path.name == "__init__.py" and name != package}


def _above(name: str) -> str:
    return name.rpartition(".")[0]


def _child(name: str, level: str) -> str | None:
    """The module or room directly inside `level` that holds `name`, or None."""
    if not name.startswith(f"{level}."):
        return None
    return f"{level}.{name[len(level) + 1 :].partition('.')[0]}"


def _crossing(module: str, target: str, rooms: set[str]) -> tuple[str | None, str | None]:
    """The room that an import leaves and the neighbour of that room which it enters (None, None: it leaves none).

    The outermost room that holds `module` but not `target` is left; the neighbour is None when the import goes to a
    package that holds that room, which is a circle and reported as one.
    """
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        room = ".".join(parts[:depth])
        if room in rooms and target != room and not target.startswith(f"{room}."):
            return room, _child(target, _above(room))
    return None, None
