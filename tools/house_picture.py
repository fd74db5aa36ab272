"""Draw docs/images/house.svg, the picture of docs/architecture.md, from the import graph of the packages.

Run `uv run python tools/house_picture.py`; with `--check` it writes nothing and exits with 1 when the picture in the
repository is not the one that the code gives. Packages stand above what they import (the one that imports all others
has no arrows), rooms (sub-packages) above the rooms they import. The shade of a room says whether the ComfyUI nodes
reach it; for that, names that a package exports are followed to the modules that define them.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from import_graph import Import, Module, imports_of, read_graph

PICTURE = Path("docs/images/house.svg")
NODES = ("comfy_nodes.nodes", "comfy_nodes.host")
"""Rooms of the face that ComfyUI uses; the command line is the other one."""

WIDTH, MARGIN, GAP = 1000, 20, 20
CHIP_HEIGHT, CHIP_GAP, HEAD, ROW_GAP = 30, 10, 34, 46
FILLS = {"all": "#9ecbff", "some": "#dcebff", "none": "#ffffff"}
LEGEND = {
    "all": "the ComfyUI nodes use all of it",
    "some": "the nodes use some of it",
    "none": "Python and the command line only",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """One sub-package, or the modules at the root of a package.

    Attributes:
        name: last part of its name; ``"at the root"`` for the modules outside every room.
        floor: 0 for a room that imports no other, else one more than the highest room that it imports.
        reached: whether the nodes reach ``"all"``, ``"some"`` or ``"none"`` of its modules.
    """

    name: str
    floor: int
    reached: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package of the workspace.

    Attributes:
        module: import name.
        imports: siblings that it imports.
        rooms: top floor first.
    """

    module: str
    imports: frozenset[str]
    rooms: tuple[Room, ...]


def read_house(root: Path) -> tuple[Package, ...]:
    """Read the packages under `root`/packages, in alphabetical order."""
    graphs = {
        folder.name.replace("-", "_"): read_graph(folder / "src")
        for folder in sorted((root / "packages").iterdir())
        if (folder / "src").is_dir()
    }
    reached = _reached(graphs)
    return tuple(
        Package(
            module=name,
            imports=frozenset(
                found.top for module in graph.values() for found in _absolute(module) if found.top in graphs
            )
            - {name},
            rooms=_rooms(name, graph, reached),
        )
        for name, graph in graphs.items()
    )


def _absolute(module: Module) -> Iterator[Import]:
    tree = ast.parse(module.path.read_text(encoding="utf-8"))
    return (found for found in imports_of(tree) if not found.level)


def _reached(graphs: Mapping[str, Mapping[str, Module]]) -> set[str]:
    """The modules that the nodes reach; a package's door alone reaches nothing, each name used of it its module."""
    known = {name: module for graph in graphs.values() for name, module in graph.items()}
    doors = {name: _exports(module, known) for name, module in known.items() if module.path.name == "__init__.py"}
    waiting = [name for name in known if any(name == room or name.startswith(f"{room}.") for room in NODES)]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in doors:
            waiting.extend(target for found in _absolute(known[name]) for target in _homes(found, known, doors))
            waiting.extend(target for target in known[name].imports if target not in doors)
    return seen


def _exports(module: Module, known: Mapping[str, Module]) -> dict[str, str]:
    """Name -> module of what a package's ``__init__`` imports from its own modules."""
    exports: dict[str, str] = {}
    for found in imports_of(ast.parse(module.path.read_text(encoding="utf-8"))):
        source = f"{module.name}.{found.module}" if found.level == 1 else found.module
        if source in known:
            exports |= dict.fromkeys(found.names, source)
    return exports


def _homes(found: Import, known: Mapping[str, Module], doors: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Yield the modules that one import needs, doors followed to the modules behind them."""
    for name in found.names or ("",):
        inner = f"{found.module}.{name}"
        source = inner if inner in known else found.module
        while name and source in doors and name in doors[source]:
            source = doors[source][name]
        if source in doors and not name:  # the whole package: everything it offers
            yield from doors[source].values()
        elif source in known:
            yield source


def _rooms(package: str, graph: Mapping[str, Module], reached: set[str]) -> tuple[Room, ...]:
    def room_of(name: str) -> str:
        return name.removeprefix(f"{package}.").partition(".")[0]

    folders = {room_of(name) for name, module in graph.items() if name != package and module.path.name == "__init__.py"}
    members: dict[str, list[str]] = {}
    arrows: dict[str, set[str]] = {folder: set() for folder in folders}
    for name, module in graph.items():
        room = room_of(name)
        if module.path.name != "__init__.py":
            members.setdefault(room if room in folders else "at the root", []).append(name)
        if room in folders:
            arrows[room] |= {room_of(target) for target in module.imports} & folders - {room}
    floors = _floors(arrows)
    rooms = []
    for room, names in members.items():
        inside = len(reached.intersection(names))
        share = "all" if inside == len(names) else "some" if inside else "none"
        rooms.append(Room(name=room, floor=floors.get(room, -1), reached=share))
    return tuple(sorted(rooms, key=lambda room: (-room.floor, room.name)))


def _floors(arrows: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Node -> 0 where it has no arrow, else one more than the highest node it points to; arrows have no circle."""
    floors: dict[str, int] = {}
    while ready := [node for node in arrows if node not in floors and all(to in floors for to in arrows[node])]:
        floors |= {node: 1 + max((floors[to] for to in arrows[node]), default=-1) for node in ready}
    return floors


def draw(packages: Sequence[Package]) -> str:
    """Return the picture as SVG text."""
    floors = _floors({package.module: package.imports for package in packages})
    rows = [
        [package for package in packages if floors.get(package.module) == floor]
        for floor in range(max(floors.values()), -1, -1)
    ]
    boxes: dict[str, tuple[float, float, float, float]] = {}
    shapes: list[str] = []
    y = float(MARGIN)
    for row in rows:
        width = (WIDTH - 2 * MARGIN - GAP * (len(row) - 1)) / len(row)
        height = max(HEAD + _stack(package) for package in row)
        for index, package in enumerate(row):
            x = MARGIN + index * (width + GAP)
            boxes[package.module] = (x, y, width, height)
            note = "imports all of the others" if _imports_all(package, packages) else ""
            shapes.extend(_box(package, note, x, y, width, height))
        y += height + ROW_GAP
    arrows = [
        _arrow(boxes[package.module], boxes[target])
        for package in packages
        if not _imports_all(package, packages)
        for target in sorted(package.imports)
    ]
    y -= ROW_GAP - 16
    shapes.extend(_legend(y))
    bottom = y + 40
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom:.0f}" width="{WIDTH}" '
        f'height="{bottom:.0f}" font-family="sans-serif" font-size="13">'
    )
    marker = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L10 5L0 10z" fill="#666"/></marker></defs>'
    )
    title = "<title>The packages of Torchspan: each stands above what it imports</title>"
    ground = f'<rect width="{WIDTH}" height="{bottom:.0f}" fill="#fff"/>'
    return "\n".join((head, title, marker, ground, *arrows, *shapes, "</svg>")) + "\n"


def _imports_all(package: Package, packages: Sequence[Package]) -> bool:
    return len(package.imports) == len(packages) - 1


def _levels(package: Package) -> list[list[Room]]:
    floors = sorted({room.floor for room in package.rooms}, reverse=True)
    return [[room for room in package.rooms if room.floor == floor] for floor in floors]


def _stack(package: Package) -> int:
    return len(_levels(package)) * (CHIP_HEIGHT + CHIP_GAP) + CHIP_GAP


def _box(package: Package, note: str, x: float, y: float, width: float, height: float) -> Iterator[str]:
    yield _rect(x, y, width, height, fill="#f6f8fa", stroke="#666")
    name = package.module.replace("_", "-")
    yield f'<text x="{x + 12:.1f}" y="{y + 22:.1f}" font-weight="bold" font-size="15">{escape(name)}</text>'
    yield f'<text x="{x + width - 12:.1f}" y="{y + 22:.1f}" text-anchor="end" fill="#666">{note}</text>'
    top = y + HEAD
    for level in _levels(package):
        chip = (width - CHIP_GAP * (len(level) + 1)) / len(level)
        for index, room in enumerate(level):
            left = x + CHIP_GAP + index * (chip + CHIP_GAP)
            yield _rect(left, top, chip, CHIP_HEIGHT, fill=FILLS[room.reached], stroke="#999")
            yield (
                f'<text x="{left + chip / 2:.1f}" y="{top + 20:.1f}" text-anchor="middle">{escape(room.name)}</text>'
            )
        top += CHIP_HEIGHT + CHIP_GAP


def _arrow(start: tuple[float, float, float, float], end: tuple[float, float, float, float]) -> str:
    left, top, width, height = start
    target = end[0] + end[2] / 2
    source = min(max(target, left + 20), left + width - 20)
    return (
        f'<path d="M{source:.1f} {top + height:.1f}L{target:.1f} {end[1]:.1f}" stroke="#666" fill="none" '
        'marker-end="url(#tip)"/>'
    )


def _legend(y: float) -> Iterator[str]:
    x = float(MARGIN)
    for reached, text in LEGEND.items():
        yield _rect(x, y, 26, 16, fill=FILLS[reached], stroke="#999")
        yield f'<text x="{x + 34:.1f}" y="{y + 13:.1f}">{text}</text>'
        x += 300


def _rect(x: float, y: float, width: float, height: float, *, fill: str, stroke: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5" fill="{fill}" '
        f'stroke="{stroke}"/>'
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the picture, or compare it with the one in the repository; return 1 when that one is stale."""
    parser = argparse.ArgumentParser(description="Draw the packages and their rooms from the import graph.")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help="workspace root")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the picture is stale")
    options = parser.parse_args(arguments)
    path = options.root / PICTURE
    text = draw(read_house(options.root))
    if not options.check:
        path.write_text(text, encoding="utf-8")
        print(f"{PICTURE} written")
        return 0
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        print(f"{PICTURE} is what the imports give")
        return 0
    print(f"{PICTURE} is stale: run `uv run python tools/house_picture.py` and commit it")
    return 1


if __name__ == "__main__":
    sys.exit(main())
