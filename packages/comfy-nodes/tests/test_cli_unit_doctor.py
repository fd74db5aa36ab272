"""Laws of `torchspan doctor`: what is there is named, what is wrong has a remedy, the exit code tells."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from comfy_nodes.cli import _doctor, main
from comfy_nodes.cli._exit import ExitCode
from comfy_nodes.cli._link import link
from device_placement import Finding

SEEN = (Finding(level="note", subject="devices", message="only cpu"),)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same devices everywhere, and a current folder that is not ComfyUI's."""
    monkeypatch.setattr(_doctor, "diagnose", lambda: SEEN)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A ComfyUI 0.33.0 without any pack."""
    folder = tmp_path / "ComfyUI"
    (folder / "custom_nodes").mkdir(parents=True)
    (folder / "main.py").touch()
    set_version(folder, "0.33.0")
    return folder


def set_version(folder: Path, text: str) -> None:
    (folder / "comfyui_version.py").write_text(f'__version__ = "{text}"\n', encoding="utf-8")


def about_comfyui(folder: Path | None) -> list[tuple[str, str]]:
    return [(finding.level, finding.subject) for finding in _doctor.comfyui_findings(folder)]


def problems(folder: Path) -> list[Finding]:
    return [finding for finding in _doctor.comfyui_findings(folder) if finding.level == "problem"]


def test_a_whole_installation_is_well(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link(comfyui / "custom_nodes" / "torchspan")
    assert main(["doctor", "--comfyui", str(comfyui)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"ok       version: 0.33.0 in {comfyui}\n" in out
    assert f"ok       pack: installed as a link in {comfyui / 'custom_nodes' / 'torchspan'}\n" in out
    assert f"ok       comfy-nodes: {version('comfy-nodes')} in " in out
    assert "note     devices: only cpu\n" in out
    assert out.endswith("\nno problems\n")
    assert [line for line in out.splitlines() if line.startswith("==")] == [
        "== Packages ==",
        "== ComfyUI ==",
        "== Devices ==",
    ]


def test_a_missing_pack_is_a_problem_whose_remedy_works(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--comfyui", str(comfyui)]) == ExitCode.REFUSED
    assert capsys.readouterr().out.endswith("\n1 problem\n")
    (problem,) = problems(comfyui)
    command, *words = problem.remedy.split()
    assert command == "torchspan"
    assert main(words) == ExitCode.OK
    assert problems(comfyui) == []


def test_json_has_all_findings_and_counts_the_problems(comfyui: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--comfyui", str(comfyui), "--json"]) == ExitCode.REFUSED
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == 1
    assert tuple(Finding(**entry) for entry in document["devices"]) == SEEN
    assert [entry["subject"] for entry in document["comfyui"]] == ["version", "pack"]


def test_without_comfyui_the_rest_is_still_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert about_comfyui(None) == [("note", "folder")]
    assert main(["doctor"]) == ExitCode.OK
    assert "torchspan doctor --comfyui PATH" in capsys.readouterr().out


def test_an_empty_name_is_not_taken_for_another_folder(
    comfyui: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert main(["doctor", "--comfyui", ""]) == ExitCode.REFUSED
    assert f"{comfyui.parent} has no folder custom_nodes" in capsys.readouterr().err


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMFYUI_PATH", "")
    assert main(["doctor"]) == ExitCode.OK
    assert "note     folder: not known" in capsys.readouterr().out


def test_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--comfyui", str(tmp_path / "nowhere")]) == ExitCode.REFUSED
    assert "has no folder custom_nodes" in capsys.readouterr().err


@pytest.mark.parametrize(("found", "level"), [("0.3.63", "problem"), ("0.3.64", "ok"), ("0.12.3", "ok")])
def test_the_oldest_release_is_known(comfyui: Path, found: str, level: str) -> None:
    set_version(comfyui, found)
    assert (level, "version") in about_comfyui(comfyui)


def test_a_version_that_cannot_be_read_is_no_traceback(comfyui: Path) -> None:
    (comfyui / "comfyui_version.py").write_bytes(b"\xfb\x00\xff")
    assert ("note", "version") in about_comfyui(comfyui)


def test_a_base_directory_tells_no_version(comfyui: Path) -> None:
    (comfyui / "comfyui_version.py").unlink()
    assert ("note", "version") in about_comfyui(comfyui)


def make_clone(folder: Path) -> None:
    (folder / "packages" / "comfy-nodes").mkdir(parents=True)
    (folder / "packages" / "comfy-nodes" / "pyproject.toml").touch()


def make_built_pack(folder: Path) -> None:
    (folder / "lib" / "comfy_nodes").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "way"),
    [(make_clone, "clone"), (make_built_pack, "built pack"), (link, "link")],
    ids=lambda value: str(value),
)
def test_each_way_of_installing_is_recognised(comfyui: Path, make: object, way: str) -> None:
    assert callable(make)
    make(comfyui / "custom_nodes" / "torchspan")
    messages = [finding.message for finding in _doctor.comfyui_findings(comfyui) if finding.subject == "pack"]
    assert messages == [f"installed as a {way} in {comfyui / 'custom_nodes' / 'torchspan'}"]


def test_two_copies_are_a_problem(comfyui: Path) -> None:
    link(comfyui / "custom_nodes" / "torchspan")
    make_clone(comfyui / "custom_nodes" / "Torchspan-main")
    (problem,) = problems(comfyui)
    assert "2 copies" in problem.message
    assert problem.remedy.startswith("keep one and remove ")


def test_the_ancestor_beside_us_is_a_problem_until_disabled(comfyui: Path) -> None:
    link(comfyui / "custom_nodes" / "torchspan")
    ancestor = comfyui / "custom_nodes" / "ComfyUI-MultiGPU"
    ancestor.mkdir()
    (problem,) = problems(comfyui)
    assert problem.subject == "ComfyUI-MultiGPU"
    ancestor.rename(comfyui / "custom_nodes" / "ComfyUI-MultiGPU.disabled")
    assert problems(comfyui) == []


def test_packs_that_get_a_device_are_named(comfyui: Path) -> None:
    (comfyui / "custom_nodes" / "ComfyUI-WanVideoWrapper").mkdir()
    (comfyui / "custom_nodes" / "some-other-pack").mkdir()
    assert ("ok", "ComfyUI-WanVideoWrapper") in about_comfyui(comfyui)
    assert "some-other-pack" not in {subject for _, subject in about_comfyui(comfyui)}


def test_what_is_missing_is_told_apart_by_whether_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_ours(name: str) -> str:
        if name in {"gguf", "ray-parallel"}:
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(_doctor, "version", only_ours)
    found = {finding.subject: finding for finding in _doctor.package_findings()}
    assert found["torch"].level == "ok"
    assert found["torch"].message.startswith("1.2.3 (asked for: torch>=")
    assert (found["gguf"].level, found["ray-parallel"].level) == ("problem", "note")
    assert "'ray'" in found["ray-parallel"].message
    assert found["gguf"].remedy.startswith('pip install "gguf>=')
