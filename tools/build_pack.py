"""Build the node pack as ComfyUI's registry takes it: a zip that needs no package of ours from pip.

Run `uv run python tools/build_pack.py --out DIR`. The pack holds

    __init__.py            the repository's own, which finds the packages in lib
    lib/                   the wheels of all members, unpacked, so that their versions and licences stay with them
    pyproject.toml         what the registry reads: `[project]` and the `[tool.comfy]` of comfy-nodes
    requirements.txt       what ComfyUI-Manager installs: third parties only, without torch, which the host brings
    locales/ example_workflows/   copies for the host, which looks for them in the pack's own folder

The same sources give the same bytes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

from smoke_wheels import ROOT, SmokeError, build

NAME = "torchspan"
"""What the pack is called in the registry; the package comfy-nodes inside it keeps its own name."""

FROM_THE_HOST = frozenset({"torch"})
OPTIONAL = "ray_parallel-"
"""The member whose requirements are for those who want its nodes: `pip install ray`."""

BESIDE = ("README.md", "CHANGELOG.md", "LICENSE")
SHOWN_BY_THE_HOST = ("locales", "example_workflows")
EARLIEST = (1980, 1, 1, 0, 0, 0)


def requirements(wheels: Sequence[Path]) -> list[str]:
    """What the wheels ask of third parties, sorted; extras, each other and what the host brings are left out."""
    members = {_normal(wheel.name.partition("-")[0]) for wheel in wheels}
    wanted: dict[str, str] = {}
    for wheel in wheels:
        if wheel.name.startswith(OPTIONAL):
            continue
        for text in _metadata(wheel).get_all("Requires-Dist") or ():
            name = _normal(re.split(r"[^A-Za-z0-9_.-]", text, maxsplit=1)[0])
            if "extra ==" in text or name in members | FROM_THE_HOST:
                continue
            wanted[name] = max(wanted.get(name, ""), text, key=_lower_bound)
    return sorted(wanted.values())


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _lower_bound(requirement: str) -> tuple[int, ...]:
    """The version after ``>=``; members that ask for the same library agree on its upper bound."""
    found = re.search(r">=([\d.]+)", requirement)
    return tuple(int(part) for part in found.group(1).split(".")) if found else ()


def _metadata(wheel: Path) -> Any:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return HeaderParser().parsestr(archive.read(name).decode())


def pyproject(project: Mapping[str, Any], comfy: Mapping[str, Any], dependencies: Sequence[str]) -> str:
    """The text of the pack's pyproject.toml."""
    lines = [
        "[project]",
        f'name = "{NAME}"',
        *(f'{key} = "{project[key]}"' for key in ("version", "description", "requires-python")),
        'license = { file = "LICENSE" }',
        'readme = "README.md"',
        f"dependencies = {_toml_list(dependencies)}",
        f"classifiers = {_toml_list(project['classifiers'])}",
        "",
        "[tool.comfy]",
        *(f'{key} = "{value}"' for key, value in comfy.items()),
    ]
    return "\n".join(lines) + "\n"


def _toml_list(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def assemble(root: Path, wheels: Sequence[Path], folder: Path) -> None:
    """Lay the pack out in a new folder.

    Args:
        root: the repository.
        wheels: of all members.
        folder: where; must not exist.
    """
    package = root / "packages" / "comfy-nodes"
    document = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))
    folder.mkdir(parents=True)
    shutil.copyfile(root / "__init__.py", folder / "__init__.py")
    for name in BESIDE:
        shutil.copyfile(package / name, folder / name)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "lib")
    for name in SHOWN_BY_THE_HOST:
        if (folder / "lib" / "comfy_nodes" / name).is_dir():
            shutil.copytree(folder / "lib" / "comfy_nodes" / name, folder / name)
    dependencies = requirements(wheels)
    (folder / "requirements.txt").write_text("\n".join(dependencies) + "\n", encoding="utf-8")
    text = pyproject(document["project"], document["tool"]["comfy"], dependencies)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")


def zip_folder(folder: Path, archive: Path) -> None:
    """Zip the contents of a folder, the same contents to the same bytes."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in _files(folder):
            entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), date_time=EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            file.writestr(entry, path.read_bytes())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def build_pack(root: Path, out: Path) -> Path:
    """Build the wheels and the pack, and return the zip in `out`; an older one of the same version is replaced.

    Raises:
        SmokeError: a wheel cannot be built.
        OSError: `out` cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=out) as work:
        wheels = build(root, Path(work, "wheels"))
        assemble(root, wheels, Path(work, NAME))
        (version,) = {wheel.name.split("-")[1] for wheel in wheels if wheel.name.startswith("comfy_nodes-")}
        archive = out / f"{NAME}-{version}.zip"
        zip_folder(Path(work, NAME), Path(work, archive.name))
        Path(work, archive.name).replace(archive)
    return archive


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the pack and say where it is; return the exit code."""
    parser = argparse.ArgumentParser(description="Build the node pack for ComfyUI's registry.")
    parser.add_argument("--out", type=Path, default=Path("dist"), metavar="DIR", help="where (default: dist)")
    options = parser.parse_args(arguments)
    try:
        archive = build_pack(ROOT, options.out.resolve())
    except (SmokeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{archive}: {archive.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
