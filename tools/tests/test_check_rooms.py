"""Laws of the folder arrows: what a room may import stands in its docstring, and nothing imports in a circle."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import check_layers
from check_rooms import may_import
from import_graph import circles, read_graph

ROOM = '"""A room.\n\nMay import: {}.\n"""\n'


def write_package(root: Path, files: dict[str, str]) -> Path:
    """Write packages/alloc-spec with these files below src/alloc_spec."""
    folder = root / "packages" / "alloc-spec"
    source = folder / "src" / "alloc_spec"
    source.mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "alloc-spec"\n')
    for name, text in ({"__init__.py": ""} | files).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    return source


def reasons(root: Path) -> list[str]:
    return [offence.reason for offence in check_layers.check(root)[1]]


@pytest.mark.parametrize(
    ("docstring", "names"),
    [
        ("Copy bytes.\n\nMay import: _errors, planning.", ("_errors", "planning")),
        ("Copy bytes.\n\nMay import: `_errors`,\n`planning`.\n", ("_errors", "planning")),
        ("Copy bytes.\n\nMay import: nothing.", ()),
        ("Copy bytes. May import: nothing.", None),
        ("Copy bytes.\n\nMay import: _errors.\n\nAnd more.", None),
        ("", None),
    ],
)
def test_a_rooms_sentence_ends_its_docstring(docstring: str, names: tuple[str, ...] | None) -> None:
    assert may_import(docstring) == names


def test_a_room_without_the_sentence_is_found(tmp_path: Path) -> None:
    write_package(tmp_path, {"copying/__init__.py": '"""Copy bytes."""'})
    assert reasons(tmp_path) == [
        "the room alloc_spec.copying does not end its docstring with 'May import: name, name.' "
        "(or 'May import: nothing.')"
    ]


def test_a_package_without_rooms_needs_no_sentence(tmp_path: Path) -> None:
    write_package(tmp_path, {"_a.py": "from alloc_spec._b import b", "_b.py": "b = 1"})
    assert reasons(tmp_path) == []


@pytest.mark.parametrize(
    "text",
    [
        "from alloc_spec._errors import E",
        "from alloc_spec import _errors",
        "import alloc_spec._errors",
        "from .._errors import E",
        "from .. import _errors",
        "def late():\n    from alloc_spec._errors import E",
        "import typing\nif typing.TYPE_CHECKING:\n    from alloc_spec._errors import E",
        "import importlib\nimportlib.import_module('alloc_spec._errors')",
    ],
)
def test_a_room_imports_what_its_sentence_allows(tmp_path: Path, text: str) -> None:
    files = {"_errors.py": "E = 1", "room/__init__.py": ROOM.format("_errors"), "room/_a.py": text}
    source = write_package(tmp_path, files)
    assert reasons(tmp_path) == []
    (source / "room" / "__init__.py").write_text(ROOM.format("nothing"))
    assert reasons(tmp_path) == [
        "alloc_spec.room imports alloc_spec._errors, but may import nothing (the docstring of its __init__)"
    ]


def test_a_room_inside_a_room_answers_to_both(tmp_path: Path) -> None:
    files = {
        "_errors.py": "",
        "outer/__init__.py": ROOM.format("_errors"),
        "outer/_data.py": "",
        "outer/inner/__init__.py": ROOM.format("_data"),
        "outer/inner/_a.py": "import alloc_spec._errors\nimport alloc_spec.outer._data\n",
    }
    source = write_package(tmp_path, files)
    assert reasons(tmp_path) == []
    (source / "outer" / "inner" / "__init__.py").write_text(ROOM.format("nothing"))
    assert reasons(tmp_path) == [
        "alloc_spec.outer.inner imports alloc_spec.outer._data, but may import nothing (the docstring of its __init__)"
    ]


def test_a_name_that_is_not_beside_the_room_is_found(tmp_path: Path) -> None:
    write_package(tmp_path, {"_errors.py": "", "room/__init__.py": ROOM.format("errors")})
    assert reasons(tmp_path) == ["alloc_spec.room may import errors, which is not beside it; beside it: _errors"]


@pytest.mark.parametrize(
    "back", ["from alloc_spec._a import a", "def late():\n    from alloc_spec._a import a", "from . import _a"]
)
def test_a_circle_of_modules_is_found(tmp_path: Path, back: str) -> None:
    write_package(tmp_path, {"_a.py": "\nimport alloc_spec._b", "_b.py": back})
    offences = check_layers.check(tmp_path)[1]
    assert [(offence.path.name, offence.line, offence.reason) for offence in offences] == [
        ("_a.py", 2, "the modules alloc_spec._a, alloc_spec._b import one another in a circle")
    ]


def test_a_module_that_imports_its_own_package_closes_a_circle(tmp_path: Path) -> None:
    write_package(tmp_path, {"__init__.py": "from alloc_spec._a import a", "_a.py": "from alloc_spec import a"})
    assert reasons(tmp_path) == ["the modules alloc_spec, alloc_spec._a import one another in a circle"]


def test_a_circle_of_rooms_without_a_circle_of_modules_is_found(tmp_path: Path) -> None:
    files = {
        "east/__init__.py": ROOM.format("west"),
        "east/_a.py": "import alloc_spec.west._a",
        "east/_b.py": "",
        "west/__init__.py": ROOM.format("east"),
        "west/_a.py": "",
        "west/_b.py": "import alloc_spec.east._b",
    }
    write_package(tmp_path, files)
    assert reasons(tmp_path) == ["the rooms alloc_spec.east, alloc_spec.west import one another in a circle"]


def test_a_circle_in_a_flat_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "a.py").write_text("import b")
    (tmp_path / "tools" / "b.py").write_text("def late():\n    import a")
    assert reasons(tmp_path) == ["the modules a, b import one another in a circle"]


def test_the_most_exact_module_of_an_import_counts(tmp_path: Path) -> None:
    (tmp_path / "p" / "q").mkdir(parents=True)
    (tmp_path / "p" / "__init__.py").write_text('"""The package."""\nfrom .q import r, s')
    (tmp_path / "p" / "q" / "__init__.py").write_text("s = 1")
    (tmp_path / "p" / "q" / "r.py").write_text("import os, p")
    graph = read_graph(tmp_path)
    assert {name: dict(module.imports) for name, module in graph.items()} == {
        "p": {"p.q.r": 2, "p.q": 2},
        "p.q": {},
        "p.q.r": {"p": 1},
    }
    assert graph["p"].docstring == "The package."


@given(st.dictionaries(st.sampled_from("abcdef"), st.sets(st.sampled_from("abcdef"))))
def test_a_graph_has_a_circle_where_it_has_no_order(edges: dict[str, set[str]]) -> None:
    arrows = {node: edges.get(node, set()) - {node} for node in "abcdef"}
    left = set(arrows)
    while ready := {node for node in left if not arrows[node] & left}:
        left -= ready
    found = {node for group in circles(arrows) for node in group}
    assert bool(found) == bool(left)
    assert found <= left
