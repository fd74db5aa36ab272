"""Laws of `torchspan link`: the folder loads this package, only our own is ever touched, nothing is half-done."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from comfy_nodes.cli import _link, main
from comfy_nodes.cli._comfyui import LINKED, is_linked
from comfy_nodes.cli._exit import CommandError, ExitCode


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A folder that looks like ComfyUI's."""
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "main.py").touch()
    return tmp_path


def linked(comfyui: Path) -> Path:
    return comfyui / "custom_nodes" / "torchspan"


def link_code(comfyui: Path, *more: str) -> int:
    return main(["link", "--comfyui", str(comfyui), *more])


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_the_folder_says_where_it_comes_from(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert link_code(comfyui) == ExitCode.OK
    said = capsys.readouterr().out
    assert str(linked(comfyui)) in said
    assert str(_link.package_folder()) in said
    assert (linked(comfyui) / "__init__.py").read_text(encoding="utf-8").startswith(LINKED)
    assert is_linked(linked(comfyui))


def test_the_folder_shows_the_host_what_lies_in_the_package(
    comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "comfy_nodes"
    (package / "locales" / "en").mkdir(parents=True)
    (package / "locales" / "en" / "nodeDefs.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(_link, "package_folder", lambda: package)
    assert link_code(comfyui) == ExitCode.OK
    assert (linked(comfyui) / "locales" / "en" / "nodeDefs.json").is_file()
    assert not (linked(comfyui) / "example_workflows").exists()


def test_a_linked_clone_shows_the_folders_at_its_top(comfyui: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    assert link_code(comfyui) == ExitCode.OK
    for name in _link.SHOWN_BY_THE_HOST:
        shown = {path.relative_to(root / name) for path in everything_below(root / name)}
        assert shown
        assert {path.relative_to(linked(comfyui) / name) for path in everything_below(linked(comfyui) / name)} == shown


def test_the_entry_finds_the_package_where_python_does_not(
    comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another Python than the one that ran the command: the entry itself says where the package is."""
    nodes = tmp_path / "site" / "comfy_nodes" / "nodes"
    nodes.mkdir(parents=True)
    (nodes.parent / "__init__.py").touch()
    names = "NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"
    (nodes / "__init__.py").write_text("\n".join(f"{name} = 'ours'" for name in names), encoding="utf-8")
    monkeypatch.setattr(_link, "package_folder", lambda: nodes.parent)
    assert link_code(comfyui) == ExitCode.OK
    program = f"import runpy; print(runpy.run_path({str(linked(comfyui) / '__init__.py')!r})['WEB_DIRECTORY'])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "ours\n"), done.stderr


def test_the_entry_leaves_the_path_alone_where_python_finds_the_package(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert link_code(comfyui) == ExitCode.OK
    before = list(sys.path)
    monkeypatch.setitem(sys.modules, "comfy_nodes.nodes", type(sys)("comfy_nodes.nodes"))
    with pytest.raises(ImportError, match="NODE_CLASS_MAPPINGS"):
        runpy.run_path(str(linked(comfyui) / "__init__.py"))
    assert sys.path == before


def test_linking_again_replaces_what_was_there(comfyui: Path) -> None:
    assert link_code(comfyui) == ExitCode.OK
    once = everything_below(comfyui)
    (linked(comfyui) / "left over from an older version").touch()
    assert link_code(comfyui) == ExitCode.OK
    assert everything_below(comfyui) == once


def test_removing_leaves_nothing(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything_below(comfyui)
    assert link_code(comfyui) == ExitCode.OK
    assert link_code(comfyui, "--remove") == ExitCode.OK
    assert everything_below(comfyui) == before
    assert link_code(comfyui, "--remove") == ExitCode.REFUSED
    assert "nothing to remove" in capsys.readouterr().err


@pytest.mark.parametrize("more", [(), ("--remove",)])
def test_what_this_command_did_not_make_is_left_alone(
    comfyui: Path, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    linked(comfyui).mkdir()
    (linked(comfyui) / "__init__.py").write_text("mine = 1\n", encoding="utf-8")
    before = everything_below(comfyui)
    assert link_code(comfyui, *more) == ExitCode.REFUSED
    assert "was not made by this command" in capsys.readouterr().err
    assert everything_below(comfyui) == before


def test_a_symbolic_link_is_left_alone_even_to_a_linked_folder(comfyui: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "__init__.py").write_text(LINKED, encoding="utf-8")
    linked(comfyui).symlink_to(other)
    assert link_code(comfyui, "--remove") == ExitCode.REFUSED
    assert (other / "__init__.py").is_file()


def test_another_copy_is_named_instead_of_loading_both(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clone = comfyui / "custom_nodes" / "Torchspan-main"
    (clone / "packages" / "comfy-nodes").mkdir(parents=True)
    (clone / "packages" / "comfy-nodes" / "pyproject.toml").touch()
    assert link_code(comfyui) == ExitCode.REFUSED
    error = capsys.readouterr().err
    assert str(clone) in error
    assert "clone" in error
    assert not linked(comfyui).exists()
    clone.rename(clone.with_name("Torchspan-main.disabled"))
    assert link_code(comfyui) == ExitCode.OK


def test_a_failure_half_way_leaves_the_old_link(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert link_code(comfyui) == ExitCode.OK
    before = everything_below(comfyui)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    assert link_code(comfyui) == ExitCode.REFUSED
    assert everything_below(comfyui) == before


def test_a_folder_that_is_not_comfyui_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert link_code(tmp_path) == ExitCode.REFUSED
    assert "has no folder custom_nodes" in capsys.readouterr().err


def test_without_a_path_the_current_folder_or_the_variable_counts(
    comfyui: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert main(["link"]) == ExitCode.REFUSED
    monkeypatch.chdir(comfyui)
    assert main(["link"]) == ExitCode.OK
    monkeypatch.chdir(comfyui.parent)
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert main(["link", "--remove"]) == ExitCode.OK


def test_a_package_without_nodes_is_not_linked(comfyui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_link, "find_spec", lambda _name: None)
    with pytest.raises(CommandError, match="has no nodes"):
        _link.link(linked(comfyui))
    assert not linked(comfyui).exists()
