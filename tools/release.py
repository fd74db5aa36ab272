"""Build what one package's release consists of, from its tag, or say why it cannot be released.

Run `uv run python tools/release.py alloc-spec-v0.1.0 --out DIR`; .github/workflows/release.yml does for a tag.
DIR then holds

    dist/       the source distribution and the wheel of that package alone
    pack/       for comfy-nodes: the node pack
    NOTES.md    the changelog's section of that version

Nothing is uploaded here.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from build_pack import build_pack
from check_bounds import Member, check, read_members
from smoke_wheels import ROOT, SmokeError, inspect_wheel

TAG_FORM = re.compile(r"(?P<name>[a-z][a-z0-9-]*)-v(?P<version>\d+\.\d+\.\d+)")
WITH_A_PACK = "comfy-nodes"


class ReleaseError(Exception):
    """A tag cannot be released; the message says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One version of one package.

    Attributes:
        member: the package.
        notes: the changelog's text on this version, without its heading.
    """

    member: Member
    notes: str


def read_release(root: Path, tag: str) -> Release:
    """What a tag of the workspace at `root` stands for.

    Raises:
        ReleaseError: the tag has another form, names no package or another version than the package has, or the
            workspace breaks a rule of check_bounds.
    """
    found = TAG_FORM.fullmatch(tag)
    members = {member.name: member for member in read_members(root)}
    if found is None or found["name"] not in members:
        raise ReleaseError(f"{tag!r} is not PACKAGE-vMAJOR.MINOR.PATCH with one of {', '.join(members)}")
    _, offences = check(root)
    if offences:
        raise ReleaseError("\n".join(map(str, offences)))
    member = members[found["name"]]
    if str(member.version) != found["version"]:
        raise ReleaseError(
            f"{member.pyproject} says version {member.version}, the tag {found['version']}; "
            "change the one that is wrong (a tag that was pushed: tag the next version instead)"
        )
    return Release(member=member, notes=read_notes(member.pyproject.parent / "CHANGELOG.md", found["version"]))


def read_notes(changelog: Path, version: str) -> str:
    """The text under a version's heading, up to the next heading of that level.

    Raises:
        ReleaseError: the version has no text.
    """
    sections = re.split(r"^## ", changelog.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    for section in sections:
        heading, _, text = section.partition("\n")
        if heading.split()[0].strip("[]") == version and text.strip():
            return text.strip() + "\n"
    raise ReleaseError(f"{changelog} says nothing under '## {version}'; write what the version brings")


def build_release(root: Path, release: Release, out: Path) -> tuple[Path, ...]:
    """Build the files of a release into an empty or new folder, and return them.

    Raises:
        ReleaseError: the folder holds something, or a build failed or built something unsound.
    """
    if out.exists() and any(out.iterdir()):
        raise ReleaseError(f"{out} is not empty, and everything in it would be uploaded; name another folder")
    name, dist, notes = release.member.name, out / "dist", out / "NOTES.md"
    command = ["uv", "build", "--package", name, "--no-create-gitignore", "--out-dir", str(dist)]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise ReleaseError(f"exit code {finished.returncode} of: {' '.join(command)}\n{finished.stderr}".rstrip())
    stem = f"{name.replace('-', '_')}-{release.member.version}"
    wheel, source = dist / f"{stem}-py3-none-any.whl", dist / f"{stem}.tar.gz"
    if sorted(dist.iterdir()) != sorted((wheel, source)):
        built = ", ".join(sorted(path.name for path in dist.iterdir()))
        raise ReleaseError(f"{wheel.name} and {source.name} were wanted, built were: {built}")
    faults = list(inspect_wheel(wheel))
    if faults:
        raise ReleaseError("\n".join(faults))
    notes.write_text(release.notes, encoding="utf-8")
    pack = (build_pack(root, out / "pack"),) if name == WITH_A_PACK else ()
    return (source, wheel, *pack, notes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and list the files; return the exit code."""
    parser = argparse.ArgumentParser(description="Build the files of one package's release from its tag.")
    parser.add_argument("tag", help="PACKAGE-vVERSION, for example alloc-spec-v0.1.0")
    parser.add_argument(
        "--out", type=Path, default=Path("release"), metavar="DIR", help="new folder (default: release)"
    )
    parser.add_argument("--check", action="store_true", help="only say whether the tag could be released")
    options = parser.parse_args(arguments)
    try:
        release = read_release(ROOT, options.tag)
        if options.check:
            print(f"{options.tag} can be released:\n\n{release.notes}", end="")
            return 0
        files = build_release(ROOT, release, options.out.resolve())
    except (ReleaseError, SmokeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for file in files:
        print(f"{file}: {file.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
