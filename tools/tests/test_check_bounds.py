"""Laws of tools/check_bounds.py: each rule has a workspace that breaks it, and this workspace keeps them all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

import check_bounds

MEMBERS = ("alloc-spec", "device-placement")


def write_workspace(
    root: Path,
    *,
    version: str | None = "0.3.2",
    requirement: str = "alloc-spec>=0.3,<0.4",
    heading: str | None = "## 0.3.2 (2026-11-22)",
    listed: tuple[str, ...] = MEMBERS,
    sources: tuple[str, ...] = MEMBERS,
) -> None:
    """Write a workspace of alloc-spec at `version` and a device-placement that requires it."""
    dependencies = ", ".join(f'"{name}"' for name in listed)
    tables = "\n".join(f"{name} = {{ workspace = true }}" for name in sources)
    root.joinpath("pyproject.toml").write_text(
        f'[project]\nname = "root"\ndependencies = [{dependencies}]\n[tool.uv.sources]\n{tables}\n'
    )
    fields = f'version = "{version}"' if version else 'dynamic = ["version"]'
    spec = root / "packages" / "alloc-spec"
    spec.mkdir(parents=True)
    spec.joinpath("pyproject.toml").write_text(f'[project]\nname = "alloc-spec"\n{fields}\n')
    if heading is not None:
        spec.joinpath("CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n\nText.\n")
    user = root / "packages" / "device-placement"
    user.mkdir(parents=True)
    user.joinpath("pyproject.toml").write_text(
        f'[project]\nname = "device-placement"\nversion = "0.1.0"\ndependencies = ["{requirement}", "torch"]\n'
    )
    user.joinpath("CHANGELOG.md").write_text("## 0.1.0\n")


def reasons(root: Path) -> list[str]:
    return [offence.reason for offence in check_bounds.check(root)[1]]


def test_this_workspace_keeps_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_bounds.main([]) == 0, capsys.readouterr().out


def test_a_sound_workspace_passes_and_says_what_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_workspace(tmp_path)
    assert check_bounds.main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "2 packages checked, 0 offences\n"


@pytest.mark.parametrize(
    "requirement", ["alloc-spec>=0.3,<0.4", "alloc_spec>=0.3.1,<0.4", "alloc-spec~=0.3.0", "alloc-spec==0.3.*"]
)
def test_every_way_to_write_a_tight_bound_is_accepted(tmp_path: Path, requirement: str) -> None:
    write_workspace(tmp_path, requirement=requirement)
    assert reasons(tmp_path) == []


@pytest.mark.parametrize("requirement", ["alloc-spec>=0.2,<0.3", "alloc-spec>=0.3.3,<0.4", "alloc-spec==0.1.0"])
def test_bounds_that_exclude_the_sibling_are_found(tmp_path: Path, requirement: str) -> None:
    write_workspace(tmp_path, requirement=requirement)
    assert reasons(tmp_path) == [
        f"'{requirement}' excludes the alloc-spec of this workspace, 0.3.2; write 'alloc-spec>=0.3,<0.4'"
    ]


@pytest.mark.parametrize(
    "requirement", ["alloc-spec", "alloc-spec>=0.3", "alloc-spec>=0.3,<1", "alloc-spec[x]>=0.3,<0.4.1"]
)
def test_bounds_that_admit_the_next_minor_are_found(tmp_path: Path, requirement: str) -> None:
    write_workspace(tmp_path, requirement=requirement)
    assert reasons(tmp_path) == [
        f"'{requirement}' admits alloc-spec 0.4.0, which may break it; write 'alloc-spec>=0.3,<0.4'"
    ]


@given(minor=st.integers(0, 40), patch=st.integers(0, 40))
def test_the_remedy_satisfies_the_rule(minor: int, patch: int) -> None:
    siblings = {"alloc-spec": Version(f"0.{minor}.{patch}")}
    bare = check_bounds.Member(
        name="user", pyproject=Path("pyproject.toml"), version=Version("0.1.0"), requirements=("alloc-spec",)
    )
    (offence,) = check_bounds.check_requirements(bare, siblings)
    remedy = offence.reason.rsplit("'", 2)[1]
    cured = check_bounds.Member(name="user", pyproject=bare.pyproject, version=bare.version, requirements=(remedy,))
    assert list(check_bounds.check_requirements(cured, siblings)) == []


def test_a_requirement_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    write_workspace(tmp_path, requirement="alloc-spec>>1")
    assert reasons(tmp_path)[0].startswith("requirement 'alloc-spec>>1' cannot be read")


def test_bounds_in_an_extra_count(tmp_path: Path) -> None:
    write_workspace(tmp_path)
    with (tmp_path / "packages/device-placement/pyproject.toml").open("a") as file:
        file.write('[project.optional-dependencies]\nmore = ["alloc-spec"]\n')
    assert len(reasons(tmp_path)) == 1


@pytest.mark.parametrize("version", [None, "1.0.0", "0.3", "0.3.2rc1"])
def test_a_version_is_static_and_0_x(tmp_path: Path, version: str | None) -> None:
    write_workspace(tmp_path, version=version)
    assert "alloc-spec has no static version 0.MINOR.PATCH in [project]; write one" in reasons(tmp_path)


@pytest.mark.parametrize("heading", [None, "## 0.3.1", "## 0.3.20", "### 0.3.2", "0.3.2"])
def test_a_changelog_without_the_version_is_found(tmp_path: Path, heading: str | None) -> None:
    write_workspace(tmp_path, heading=heading)
    assert reasons(tmp_path) == ["no heading '## 0.3.2'; say there what the version brings"]


@pytest.mark.parametrize("heading", ["## 0.3.2", "## [0.3.2] - 2026-11-22"])
def test_usual_changelog_headings_are_accepted(tmp_path: Path, heading: str) -> None:
    write_workspace(tmp_path, heading=heading)
    assert reasons(tmp_path) == []


def test_a_member_that_the_root_forgot_is_found(tmp_path: Path) -> None:
    write_workspace(tmp_path, listed=("alloc-spec",), sources=("device-placement",))
    assert reasons(tmp_path) == [
        "alloc-spec is missing in [tool.uv.sources]; add alloc-spec = { workspace = true }",
        "device-placement is missing in [project] dependencies; a plain uv sync would not install it",
    ]


def test_an_empty_folder_is_not_a_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.joinpath("pyproject.toml").write_text('[project]\nname = "root"\n')
    assert check_bounds.main(["--root", str(tmp_path)]) == 1
    assert "nothing was checked" in capsys.readouterr().out


def test_offences_are_printed_with_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_workspace(tmp_path, heading=None)
    assert check_bounds.main(["--root", str(tmp_path)]) == 1
    assert f"{tmp_path / 'packages/alloc-spec/CHANGELOG.md'}: no heading" in capsys.readouterr().out
