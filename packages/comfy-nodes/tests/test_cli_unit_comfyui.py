"""ComfyUI seen from outside: where it is, which release it is, and which packs it would load."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comfy_nodes.cli._comfyui import (
    LINKED,
    OLDEST,
    PackCopy,
    ancestors,
    find_comfyui,
    is_linked,
    is_old,
    pack_copies,
    packs_named,
    read_version,
)
from comfy_nodes.cli._exit import CommandError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no variable that names another."""
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder: Path, *, program: bool = True) -> Path:
    (folder / "custom_nodes").mkdir(parents=True)
    if program:
        (folder / "main.py").touch()
    return folder


def test_it_is_asked_for_before_the_variable_and_the_current_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(here)
    assert find_comfyui(None) == here
    variable, asked = make(here / "variable"), make(here / "asked")
    monkeypatch.setenv("COMFYUI_PATH", str(variable))
    assert find_comfyui(None) == variable
    assert find_comfyui("asked") == asked


def test_a_folder_asked_for_needs_no_program(here: Path) -> None:
    assert find_comfyui(str(make(here / "base", program=False))) == here / "base"


@pytest.mark.parametrize("present", ["nothing", "custom_nodes", "main.py"])
def test_the_current_folder_counts_only_where_both_are(here: Path, present: str) -> None:
    if present == "custom_nodes":
        (here / present).mkdir()
    elif present == "main.py":
        (here / present).touch()
    assert find_comfyui(None) is None


def test_a_home_is_expanded(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    make(here / "ComfyUI")
    assert find_comfyui("~/ComfyUI") == here / "ComfyUI"


@pytest.mark.parametrize("way", ["asked", "variable"])
def test_a_folder_without_custom_nodes_is_none_however_it_was_named(
    here: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "custom_nodes").touch()  # a file of that name is no folder
    monkeypatch.setenv("COMFYUI_PATH", str(here))
    with pytest.raises(CommandError, match=r"has no folder custom_nodes; give the folder of ComfyUI's main\.py"):
        find_comfyui(str(here) if way == "asked" else None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('__version__ = "0.33.0"\n', "0.33.0"),
        ("# written by a release\n__version__ = '0.3.64'\n", "0.3.64"),
        ("version = '1'\n", None),
        ("", None),
    ],
)
def test_the_release_is_read_and_nothing_is_run(here: Path, text: str, found: str | None) -> None:
    (here / "comfyui_version.py").write_text(text + "raise SystemExit('it was run')\n", encoding="utf-8")
    assert read_version(here) == found


@given(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 90)))
def test_releases_are_compared_by_number_not_by_letter(release: tuple[int, int, int]) -> None:
    assert is_old(".".join(map(str, release))) == (release < OLDEST)


def test_copies_are_found_by_what_is_in_them(here: Path) -> None:
    nodes = make(here) / "custom_nodes"
    (nodes / "a-clone" / "packages" / "comfy-nodes").mkdir(parents=True)
    (nodes / "a-clone" / "packages" / "comfy-nodes" / "pyproject.toml").touch()
    (nodes / "b-built" / "lib" / "comfy_nodes").mkdir(parents=True)
    (nodes / "c-link").mkdir()
    (nodes / "c-link" / "__init__.py").write_text(f'{LINKED}."""\n', encoding="utf-8")
    (nodes / "d-other").mkdir()
    (nodes / "d-other" / "__init__.py").write_bytes(b"\xff\xfe no text of ours")
    (nodes / "a_file.py").touch()
    assert pack_copies(nodes) == (
        PackCopy(folder=nodes / "a-clone", way="clone"),
        PackCopy(folder=nodes / "b-built", way="built pack"),
        PackCopy(folder=nodes / "c-link", way="link"),
    )


@pytest.mark.parametrize("name", ["torchspan.disabled", ".torchspan-x", "__pycache__", "_torchspan"])
def test_what_comfyui_does_not_load_is_no_copy(here: Path, name: str) -> None:
    nodes = make(here) / "custom_nodes"
    (nodes / name / "lib" / "comfy_nodes").mkdir(parents=True)
    assert pack_copies(nodes) == ()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("ComfyUI-MultiGPU", True),
        ("comfyui-multigpu", True),
        ("ComfyUI-MultiGPU-main", True),
        ("comfyui-multigpu.disabled", False),
        ("ComfyUI-GGUF", False),
    ],
)
def test_the_ancestor_is_known_in_any_writing(here: Path, name: str, is_one: bool) -> None:
    nodes = make(here) / "custom_nodes"
    (nodes / name).mkdir()
    assert ancestors(nodes) == ((nodes / name,) if is_one else ())


def test_packs_are_named_as_their_folders_are(here: Path) -> None:
    nodes = make(here) / "custom_nodes"
    for name in ("comfyui-wanvideowrapper", "ComfyUI-Florence2", "another"):
        (nodes / name).mkdir()
    wanted = frozenset({"ComfyUI-WanVideoWrapper", "ComfyUI-Florence2", "PuLID_ComfyUI"})
    assert packs_named(nodes, wanted) == ("ComfyUI-Florence2", "comfyui-wanvideowrapper")


@pytest.mark.parametrize(("text", "linked"), [(f'{LINKED}: more."""', True), ('"""Another."""', False), ("", False)])
def test_a_link_is_known_by_its_first_words(here: Path, text: str, linked: bool) -> None:
    (here / "__init__.py").write_text(text, encoding="utf-8")
    assert is_linked(here) is linked


def test_a_folder_without_an_entry_is_no_link(here: Path) -> None:
    assert not is_linked(here)
