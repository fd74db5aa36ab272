"""Laws of the ComfyUI checkout: complete or not at all, in the folder where tests look, with the version asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import get_comfyui
from get_comfyui import CheckoutError

IDENTITY = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *IDENTITY, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, version: str, **files: str) -> str:
    """Commit a version and some files, and return the commit."""
    contents = {"main.py": "", "comfy/ops.py": "", "comfyui_version.py": f'__version__ = "{version}"\n', **files}
    for name, text in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", f"version {version}")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A repository like ComfyUI's: three releases, of which one has a tag."""
    folder = tmp_path / "source"
    folder.mkdir()
    git(folder, "init", "--quiet")
    commit(folder, "0.3.64")
    commit(folder, "0.12.0", **{"comfy/new.py": "1\n"})
    git(folder, "tag", "v0.12.0")
    commit(folder, "0.33.0", **{"comfy/new.py": "2\n", "comfy/a name with spaces.json": "{}"})
    return folder


def test_the_newest_is_what_comes_without_a_version(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "ComfyUI"
    assert get_comfyui.get(str(source), folder) == "0.33.0"
    assert get_comfyui.is_comfyui(folder)
    assert get_comfyui.read_version(folder) == "0.33.0"
    assert (folder / "comfy" / "a name with spaces.json").read_text(encoding="utf-8") == "{}"
    assert git(folder, "status", "--porcelain") == ""
    assert [path.name for path in folder.parent.iterdir()] == ["ComfyUI"]


@pytest.mark.parametrize("version", ["0.3.64", "0.12.0", "0.33.0"])
def test_a_version_is_found_by_its_tag_or_by_the_commit_that_set_it(source: Path, tmp_path: Path, version: str) -> None:
    folder = tmp_path / "checkout"
    assert get_comfyui.get(str(source), folder, version=version) == version
    assert get_comfyui.read_version(folder) == version
    assert (folder / "comfy" / "new.py").exists() == (version != "0.3.64")


def test_a_url_is_a_source(source: Path, tmp_path: Path) -> None:
    assert get_comfyui.get(source.as_uri(), tmp_path / "checkout") == "0.33.0"


def test_files_whose_contents_the_source_lost_are_left_out_and_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "large file.bin").write_bytes(os.urandom(1000))
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", "large")
    blob = git(source, "rev-parse", "HEAD:large file.bin")
    (source / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
    folder = tmp_path / "checkout"
    assert get_comfyui.get(str(source), folder) == "0.33.0"
    assert get_comfyui.is_comfyui(folder)
    assert not (folder / "large file.bin").exists()
    assert "large file.bin" in capsys.readouterr().err


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(source: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert get_comfyui.get(str(source), empty) == "0.33.0"
    before = {path.name for path in empty.iterdir()}
    with pytest.raises(CheckoutError, match="exists already"):
        get_comfyui.get(str(source), empty, version="0.12.0")
    assert {path.name for path in empty.iterdir()} == before


def test_nothing_is_left_of_a_checkout_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "--quiet")
    (other / "readme").write_text("not ComfyUI", encoding="utf-8")
    git(other, "add", "--all")
    git(other, "commit", "--quiet", "--message", "other")
    folder = tmp_path / "place" / "ComfyUI"
    with pytest.raises(CheckoutError, match="but not ComfyUI"):
        get_comfyui.get(str(other), folder)
    with pytest.raises(CheckoutError, match=r"no tag v9\.9\.9"):
        get_comfyui.get(str(source), folder, version="9.9.9")
    with pytest.raises(CheckoutError, match="git clone failed"):
        get_comfyui.get(str(tmp_path / "nowhere"), folder)
    assert list(folder.parent.iterdir()) == []


def test_the_place_is_where_tests_look(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "given"
    monkeypatch.setenv("COMFYUI_PATH", str(folder))
    assert get_comfyui.find_comfyui() is None
    assert get_comfyui.main(["--from", str(source), "--version", "0.12.0"]) == 0
    assert capsys.readouterr().out == f"ComfyUI 0.12.0 is in {folder}\n"
    assert get_comfyui.find_comfyui() == folder
    assert get_comfyui.main(["--from", str(source)]) == 1
    assert "exists already" in capsys.readouterr().err


def test_the_cache_is_the_place_when_no_other_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get_comfyui.checkout_folder() == tmp_path / ".cache" / "torchspan" / "ComfyUI"


def test_a_folder_without_a_version_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(CheckoutError, match="names no version"):
        get_comfyui.read_version(tmp_path)
