"""Check versions, the bounds between members, and changelogs: what uv does not check inside a workspace.

Run `uv run python tools/check_bounds.py`; it prints every offender as `path: reason` and exits with 1 when there
is one.

The rules, for every package under packages/:

1. Its version is static (ComfyUI-Manager reads it from the file) and of the form 0.MINOR.PATCH.
2. A dependency on a sibling carries bounds that include the sibling's current version and exclude its next minor one:
   in 0.x a minor version may break, and uv ignores these bounds inside the workspace, so nothing else would notice.
3. CHANGELOG.md has a heading of the current version.
4. The root pyproject.toml lists it as a dependency and as a workspace source, or a plain `uv sync` would leave it out.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

VERSION_FORM = re.compile(r"0\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One package as its pyproject.toml describes it; `version` is None where it has no static one of our form."""

    name: str
    pyproject: Path
    version: Version | None
    requirements: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offence:
    """One rule broken in one file."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def read_members(root: Path) -> tuple[Member, ...]:
    """Read the packages under `root`/packages in name order."""
    members = []
    for pyproject in sorted((root / "packages").glob("*/pyproject.toml")):
        project: Mapping[str, Any] = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        text = str(project.get("version", ""))
        requirements = [*project.get("dependencies", ())]
        for extra in project.get("optional-dependencies", {}).values():
            requirements.extend(extra)
        members.append(
            Member(
                name=canonicalize_name(project["name"]),
                pyproject=pyproject,
                version=Version(text) if VERSION_FORM.fullmatch(text) else None,
                requirements=tuple(requirements),
            )
        )
    return tuple(members)


def check_version(member: Member) -> Iterator[Offence]:
    """Yield what is wrong with a member's own version and its changelog."""
    if member.version is None:
        reason = f"{member.name} has no static version 0.MINOR.PATCH in [project]; write one"
        yield Offence(path=member.pyproject, reason=reason)
        return
    changelog = member.pyproject.parent / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8") if changelog.is_file() else ""
    if not re.search(rf"^## \[?{re.escape(str(member.version))}\]?(?:\s|$)", text, flags=re.MULTILINE):
        reason = f"no heading '## {member.version}'; say there what the version brings"
        yield Offence(path=changelog, reason=reason)


def check_requirements(member: Member, siblings: Mapping[str, Version]) -> Iterator[Offence]:
    """Yield the requirements of a member whose bounds do not fit its siblings' current versions.

    Args:
        member: the package whose requirements are read.
        siblings: current version of every package of the workspace, by normalised name.
    """
    for text in member.requirements:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            yield Offence(path=member.pyproject, reason=f"requirement {text!r} cannot be read: {error}")
            continue
        version = siblings.get(canonicalize_name(requirement.name))
        if version is None:
            continue
        next_minor = Version(f"{version.major}.{version.minor + 1}.0")
        wanted = f"{requirement.name}>={version.major}.{version.minor},<{version.major}.{version.minor + 1}"
        if version not in requirement.specifier:
            reason = f"{text!r} excludes the {requirement.name} of this workspace, {version}; write {wanted!r}"
            yield Offence(path=member.pyproject, reason=reason)
        if next_minor in requirement.specifier:
            reason = f"{text!r} admits {requirement.name} {next_minor}, which may break it; write {wanted!r}"
            yield Offence(path=member.pyproject, reason=reason)


def check_root(root: Path, members: Sequence[Member]) -> Iterator[Offence]:
    """Yield the members that the root does not list as a dependency or as a workspace source."""
    pyproject = root / "pyproject.toml"
    document = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    listed = {canonicalize_name(Requirement(text).name) for text in document["project"].get("dependencies", ())}
    sources = {
        canonicalize_name(name)
        for name, source in document.get("tool", {}).get("uv", {}).get("sources", {}).items()
        if source == {"workspace": True}
    }
    for member in members:
        if member.name not in listed:
            reason = f"{member.name} is missing in [project] dependencies; a plain uv sync would not install it"
            yield Offence(path=pyproject, reason=reason)
        if member.name not in sources:
            reason = f"{member.name} is missing in [tool.uv.sources]; add {member.name} = {{ workspace = true }}"
            yield Offence(path=pyproject, reason=reason)


def check(root: Path) -> tuple[int, list[Offence]]:
    """Check the workspace at `root`; return the number of packages read and the offences."""
    members = read_members(root)
    siblings = {member.name: member.version for member in members if member.version is not None}
    offences: list[Offence] = []
    for member in members:
        offences.extend(check_version(member))
        offences.extend(check_requirements(member, siblings))
    offences.extend(check_root(root, members))
    return len(members), offences


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the offenders and return 1, or say what was checked and return 0."""
    parser = argparse.ArgumentParser(description="Check versions, bounds between members and changelogs.")
    default = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=default, help="workspace root (default: this one)")
    root: Path = parser.parse_args(arguments).root
    packages, offences = check(root)
    for offence in offences:
        print(offence)
    if not packages:
        print(f"no package under {root / 'packages'}: nothing was checked")
        return 1
    print(f"{packages} packages checked, {len(offences)} offences")
    return 1 if offences else 0


if __name__ == "__main__":
    sys.exit(main())
