"""Laws of tools/house_picture.py: the picture shows what the imports say, and notices when they change."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

import house_picture
from house_picture import Room, read_house

FILES = {
    "alloc-spec/src/alloc_spec/__init__.py": "from ._parse import parse\nfrom alloc_spec._extra import extra\n",
    "alloc-spec/src/alloc_spec/_parse.py": "parse = 1\n",
    "alloc-spec/src/alloc_spec/_extra.py": "extra = 1\n",
    "comfy-nodes/src/comfy_nodes/__init__.py": "",
    "comfy-nodes/src/comfy_nodes/cli/__init__.py": "",
    "comfy-nodes/src/comfy_nodes/cli/_main.py": "import comfy_nodes.nodes._load\nimport gguf_loader\n",
    "comfy-nodes/src/comfy_nodes/nodes/__init__.py": "",
    "comfy-nodes/src/comfy_nodes/nodes/_load.py": "def late():\n    from alloc_spec import parse\n",
    "gguf-loader/src/gguf_loader/__init__.py": "from ._file import read",
    "gguf-loader/src/gguf_loader/_file.py": "read = 1\n",
}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Three packages: the nodes reach half of one, the command line another."""
    for name, text in FILES.items():
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    return tmp_path


def test_rooms_stand_above_what_they_import_and_say_who_reaches_them(workspace: Path) -> None:
    alloc, face, gguf = read_house(workspace)
    assert (alloc.module, face.module, gguf.module) == ("alloc_spec", "comfy_nodes", "gguf_loader")
    assert face.imports == {"alloc_spec", "gguf_loader"}
    assert alloc.rooms == (Room(name="at the root", floor=-1, reached="some"),)
    assert face.rooms == (Room(name="cli", floor=1, reached="none"), Room(name="nodes", floor=0, reached="all"))
    assert gguf.rooms == (Room(name="at the root", floor=-1, reached="none"),)


def test_a_package_imported_whole_is_reached_whole(workspace: Path) -> None:
    (workspace / "packages/comfy-nodes/src/comfy_nodes/nodes/_load.py").write_text("import alloc_spec, gguf_loader")
    reached = {package.module: package.rooms[-1].reached for package in read_house(workspace)}
    assert reached == {"alloc_spec": "all", "comfy_nodes": "all", "gguf_loader": "all"}


def test_the_check_notices_a_change(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--root", str(workspace)]
    assert house_picture.main([*command, "--check"]) == 1
    assert house_picture.main(command) == 0
    assert house_picture.main([*command, "--check"]) == 0
    (workspace / "packages/comfy-nodes/src/comfy_nodes/host").mkdir()
    (workspace / "packages/comfy-nodes/src/comfy_nodes/host/__init__.py").write_text("")
    (workspace / "packages/comfy-nodes/src/comfy_nodes/host/_a.py").write_text("from gguf_loader import read")
    assert house_picture.main([*command, "--check"]) == 1
    assert "stale: run" in capsys.readouterr().out


def test_the_picture_names_every_package_and_room(workspace: Path) -> None:
    texts = [element.text for element in ElementTree.fromstring(house_picture.draw(read_house(workspace))).iter()]
    assert {"alloc-spec", "comfy-nodes", "gguf-loader", "cli", "nodes", "at the root"} <= set(texts)
    assert "imports all of the others" in texts


def test_the_picture_of_this_repository_is_current() -> None:
    assert house_picture.main(["--check"]) == 0, "run `uv run python tools/house_picture.py`"
