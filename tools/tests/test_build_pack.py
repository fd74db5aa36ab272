"""Laws of the built pack: everything of ours is inside, everything else is asked for, bytes repeat."""

from __future__ import annotations

import re
import shutil
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import build_pack
from smoke_wheels import SmokeError

ROOT = Path(__file__).resolve().parents[2]
COMFY_NODES = ROOT / "packages" / "comfy-nodes" / "pyproject.toml"


def make_wheel(folder: Path, name: str, requires: Sequence[str] = (), files: Mapping[str, str] | None = None) -> Path:
    """A wheel as an installer would see it: a module, its metadata, and whatever else."""
    lines = ["Metadata-Version: 2.4", f"Name: {name.replace('_', '-')}", "Version: 0.1.0"]
    metadata = "\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires), "", "A description: of it.", ""])
    wheel = folder / f"{name}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{name}/__init__.py", "")
        archive.writestr(f"{name}-0.1.0.dist-info/METADATA", metadata)
        for path, text in (files or {}).items():
            archive.writestr(path, text)
    return wheel


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """Three members: the face, which has a locale, one that it needs, and the optional one."""
    face = ["alloc-spec<0.2,>=0.1", "torch>=2.6", "gguf>=0.17", 'ray-parallel<0.2,>=0.1; extra == "ray"']
    return [
        make_wheel(tmp_path, "alloc_spec", ["numpy>=1.26"]),
        make_wheel(tmp_path, "comfy_nodes", [*face, "numpy>=2.1"], {"comfy_nodes/locales/en/nodeDefs.json": "{}"}),
        make_wheel(tmp_path, "ray_parallel", ["ray>=2.50"]),
    ]


def test_third_parties_alone_are_asked_for_with_the_higher_bound(wheels: list[Path]) -> None:
    assert build_pack.requirements(wheels) == ["gguf>=0.17", "numpy>=2.1"]


def test_the_order_of_the_wheels_does_not_matter(wheels: list[Path]) -> None:
    assert build_pack.requirements(wheels[::-1]) == build_pack.requirements(wheels)


def test_bounds_are_compared_as_versions(tmp_path: Path) -> None:
    wheels = [make_wheel(tmp_path, "alloc_spec", ["numpy>=1.9"]), make_wheel(tmp_path, "gguf_loader", ["numpy>=1.26"])]
    assert build_pack.requirements(wheels) == ["numpy>=1.26"]


def test_the_pack_has_the_packages_and_what_the_host_looks_for(wheels: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    build_pack.assemble(ROOT, wheels, folder)
    assert (folder / "__init__.py").read_bytes() == (ROOT / "__init__.py").read_bytes()
    assert (folder / "lib" / "alloc_spec" / "__init__.py").is_file()
    assert (folder / "lib" / "comfy_nodes-0.1.0.dist-info" / "METADATA").is_file()
    assert (folder / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8") == "{}"
    assert not (folder / "example_workflows").exists()
    assert (folder / "requirements.txt").read_text(encoding="utf-8") == "gguf>=0.17\nnumpy>=2.1\n"


def test_the_registry_can_read_the_pack(wheels: list[Path], tmp_path: Path) -> None:
    """The fields that the registry asks for, and the form of a name in it."""
    build_pack.assemble(ROOT, wheels, tmp_path / "pack")
    document = tomllib.loads((tmp_path / "pack" / "pyproject.toml").read_text(encoding="utf-8"))
    source = tomllib.loads(COMFY_NODES.read_text(encoding="utf-8"))
    assert re.fullmatch(r"[a-z][a-z0-9_-]{0,99}", document["project"]["name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", document["project"]["version"])
    assert document["project"]["version"] == source["project"]["version"]
    assert document["project"]["dependencies"] == ["gguf>=0.17", "numpy>=2.1"]
    assert (tmp_path / "pack" / document["project"]["license"]["file"]).is_file()
    assert document["tool"]["comfy"] == source["tool"]["comfy"]
    assert document["tool"]["comfy"]["PublisherId"]
    assert document["tool"]["comfy"]["DisplayName"] == "Torchspan"


def test_the_same_folder_gives_the_same_bytes(wheels: list[Path], tmp_path: Path) -> None:
    archives = []
    for name in ("one", "two"):
        build_pack.assemble(ROOT, wheels, tmp_path / name)
        archives.append(tmp_path / f"{name}.zip")
        build_pack.zip_folder(tmp_path / name, archives[-1])
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        assert archive.testzip() is None
        assert "__init__.py" in archive.namelist()


def test_a_failed_build_leaves_the_old_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> tuple[Path, ...]:
        raise SmokeError("exit code 2 of: uv build")

    old = tmp_path / "torchspan-0.1.0.zip"
    old.write_bytes(b"old")
    monkeypatch.setattr(build_pack, "build", fail)
    assert build_pack.main(["--out", str(tmp_path)]) == 1
    assert "exit code 2" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_bytes() == b"old"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on the PATH; pip install uv")
def test_the_pack_of_this_repository_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_pack.main(["--out", str(tmp_path)]) == 0
    (archive,) = tmp_path.iterdir()
    assert str(archive) in capsys.readouterr().out
    with zipfile.ZipFile(archive) as file:
        names = set(file.namelist())
        wanted = file.read("requirements.txt").decode().split()
    for sources in ROOT.glob("packages/*/src"):
        assert {f"lib/{path.relative_to(sources).as_posix()}" for path in sources.rglob("*.py")} <= names
    examples = {f"example_workflows/{path.name}" for path in (ROOT / "example_workflows").iterdir()}
    assert {name for name in names if name.startswith("example_workflows/")} == examples
    assert {Path(name).stem for name in examples if name.endswith(".jpg")} == {Path(name).stem for name in examples}
    assert not any(name.startswith(("torch>", "ray>", "alloc-spec")) for name in wanted)
    assert archive.stat().st_size < 4 << 20
    assert wanted == (ROOT / "requirements.txt").read_text(encoding="utf-8").split(), "what a clone installs differs"
