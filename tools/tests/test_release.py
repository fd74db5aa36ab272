"""A tag becomes the files of one package's release, or is refused with what to do."""

from __future__ import annotations

import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from check_bounds import read_members
from release import WITH_A_PACK, ReleaseError, build_release, main, read_notes, read_release
from smoke_wheels import ROOT

CHANGELOG = """# Changelog of one

## 0.2.0 (2026-12-01)

- Second.

### Removed

- First.

## [0.1.0]

First.

## 0.0.9
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Two packages that can be released; `two` needs `one`."""
    root = tmp_path / "workspace"
    for name, needs in (("one", "[]"), ("two", '["one>=0.2,<0.3"]')):
        folder = root / "packages" / name
        folder.mkdir(parents=True)
        (folder / "CHANGELOG.md").write_text(CHANGELOG)
        (folder / "LICENSE").write_text("free\n")
        (folder / "src" / name).mkdir(parents=True)
        for file in ("__init__.py", "py.typed"):
            (folder / "src" / name / file).touch()
        (folder / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "0.2.0"\nrequires-python = ">=3.11"\ndependencies = {needs}\n'
            'license-files = ["LICENSE"]\n\n'
            '[build-system]\nrequires = ["hatchling>=1.27"]\nbuild-backend = "hatchling.build"\n\n'
            f'[tool.hatch.build.targets.wheel]\npackages = ["src/{name}"]\n'
        )
    (root / "pyproject.toml").write_text(
        '[project]\nname = "root"\nversion = "0.1.0"\nrequires-python = ">=3.11"\ndependencies = ["one", "two"]\n\n'
        '[tool.uv]\npackage = false\n\n[tool.uv.workspace]\nmembers = ["packages/*"]\n\n'
        "[tool.uv.sources]\none = { workspace = true }\ntwo = { workspace = true }\n"
    )
    return root


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_tag_names_a_package_and_what_its_version_brings(workspace: Path) -> None:
    found = read_release(workspace, "one-v0.2.0")
    assert (found.member.name, str(found.member.version)) == ("one", "0.2.0")
    assert found.notes == "- Second.\n\n### Removed\n\n- First.\n"


@pytest.mark.parametrize(
    "tag",
    ["", "one", "v0.2.0", "one-0.2.0", "one-v0.2", "one-v0.2.0rc1", "one-v0.2.0\n", "three-v0.2.0", "../one-v0.2.0"],
)
def test_a_tag_of_another_form_is_refused_with_the_packages_there_are(workspace: Path, tag: str) -> None:
    with pytest.raises(ReleaseError, match=rf"^{re.escape(repr(tag))} is not PACKAGE-v.* one of one, two$"):
        read_release(workspace, tag)


def test_another_version_than_the_package_has_is_refused(workspace: Path) -> None:
    with pytest.raises(ReleaseError, match=r"says version 0\.2\.0, the tag 0\.3\.0; change the one that is wrong"):
        read_release(workspace, "two-v0.3.0")


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("packages/two/pyproject.toml", "<0.3", "<0.4", "admits one 0.3.0"),
        ("packages/two/pyproject.toml", ">=0.2,", ">=0.2.1,", "excludes the one of this workspace"),
        ("packages/one/CHANGELOG.md", "## 0.2.0", "## 0.2.1", "no heading '## 0.2.0'"),
        ("pyproject.toml", '["one", "two"]', '["one"]', "two is missing"),
    ],
)
def test_a_broken_rule_of_the_workspace_stops_every_release(
    workspace: Path, file: str, old: str, new: str, reason: str
) -> None:
    replace(workspace / file, old, new)
    for tag in ("one-v0.2.0", "two-v0.2.0"):
        with pytest.raises(ReleaseError, match=re.escape(reason)):
            read_release(workspace, tag)


def test_notes_end_where_the_next_version_begins(tmp_path: Path) -> None:
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(CHANGELOG)
    assert read_notes(changelog, "0.1.0") == "First.\n"


@pytest.mark.parametrize("version", ["0.0.9", "0.3.0", "0.2"])
def test_a_version_that_says_nothing_is_not_released(tmp_path: Path, version: str) -> None:
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(CHANGELOG)
    with pytest.raises(ReleaseError, match=f"says nothing under '## {re.escape(version)}'"):
        read_notes(changelog, version)


def test_the_files_are_of_that_package_alone(workspace: Path, tmp_path: Path) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    files = build_release(workspace, read_release(workspace, "two-v0.2.0"), out)
    assert [file.relative_to(out).as_posix() for file in files] == [
        "dist/two-0.2.0.tar.gz", "dist/two-0.2.0-py3-none-any.whl", "NOTES.md",
    ]  # fmt: skip
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(files)
    with zipfile.ZipFile(files[1]) as wheel:
        assert "two/py.typed" in wheel.namelist()
    with tarfile.open(files[0]) as source:
        assert "two-0.2.0/pyproject.toml" in source.getnames()
    assert files[2].read_text() == "- Second.\n\n### Removed\n\n- First.\n"


def test_a_wheel_with_a_fault_is_not_released(workspace: Path, tmp_path: Path) -> None:
    (workspace / "packages" / "one" / "src" / "one" / "py.typed").unlink()
    with pytest.raises(ReleaseError, match=r"has no one/py\.typed"):
        build_release(workspace, read_release(workspace, "one-v0.2.0"), tmp_path / "release")


def test_a_build_that_fails_is_told_with_its_command(workspace: Path, tmp_path: Path) -> None:
    found = read_release(workspace, "one-v0.2.0")
    replace(workspace / "packages" / "one" / "pyproject.toml", "hatchling.build", "hatchling.missing")
    with pytest.raises(ReleaseError, match="of: uv build --package one"):
        build_release(workspace, found, tmp_path / "release")


def test_what_lies_in_the_folder_is_not_released_with_it(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "old.whl").touch()
    with pytest.raises(ReleaseError, match="is not empty"):
        build_release(workspace, read_release(workspace, "one-v0.2.0"), tmp_path / "release")
    assert [path.name for path in (tmp_path / "release").iterdir()] == ["old.whl"]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "packages").glob("*/pyproject.toml")))
def test_every_package_here_can_be_released(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (member,) = (member for member in read_members(ROOT) if member.name == name)
    assert main([f"{name}-v{member.version}", "--check"]) == 0
    assert capsys.readouterr().out.startswith(f"{name}-v{member.version} can be released:\n\n")


def test_a_refusal_is_one_message_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing-v1.0.0", "--out", str(tmp_path / "release")]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "'nothing-v1.0.0' is not PACKAGE-v" in told.err
    assert not (tmp_path / "release").exists()


@pytest.mark.slow
def test_the_node_pack_is_released_with_its_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (member,) = (member for member in read_members(ROOT) if member.name == WITH_A_PACK)
    out = tmp_path / "release"
    assert main([f"{member.name}-v{member.version}", "--out", str(out)]) == 0
    assert (out / "pack" / f"torchspan-{member.version}.zip").is_file()
    assert sorted(path.suffix for path in (out / "dist").iterdir()) == [".gz", ".whl"]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_the_workflow_publishes_what_was_checked_and_nothing_else() -> None:
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    check, publish = ([step["run"] for step in jobs[name]["steps"] if "run" in step] for name in ("check", "publish"))
    assert check[0].endswith('tools/release.py "$GITHUB_REF_NAME" --check')
    assert check[1] == "bash .ci/run"
    assert jobs["publish"]["needs"] == "check"
    assert publish[0].endswith('tools/release.py "$GITHUB_REF_NAME" --out release')
    assert publish[1] == 'uv publish "release/dist/*"'
