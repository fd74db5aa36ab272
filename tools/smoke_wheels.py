"""Build every wheel, install all of them outside the workspace, import each and run the command.

Run `uv run python tools/smoke_wheels.py`; it prints one line a package and exits with 1 when something is wrong.

The wheels go into a fresh virtual environment. Third parties (torch alone is about 5 GB) are not installed again:
a .pth file there names the site-packages of the environment that runs this script. Python does not process .pth files
of a folder that was itself added by one, so the workspace's editable installs stay invisible, and the check proves it:
every module must come from the fresh environment, and every requirement in a wheel's metadata must be met there.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
MAX_WHEEL_BYTES = 1 << 20
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("torchspan", "--version"),
    ("torchspan", "explain", "cuda:0,2gb;cpu,*"),
    ("torchspan", "devices"),
)


class SmokeError(Exception):
    """A wheel cannot be built, installed, imported or used; the message says which and why."""


def _run(command: Sequence[str | Path], *, folder: Path) -> str:
    """Run a command in `folder` and return its output.

    Raises:
        SmokeError: it failed; the message has its output.
    """
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if finished.returncode:
        words = " ".join(str(part) for part in command)
        raise SmokeError(f"exit code {finished.returncode} of: {words}\n{finished.stdout}{finished.stderr}".rstrip())
    return finished.stdout


def build(root: Path, folder: Path) -> tuple[Path, ...]:
    """Build the wheel of every package of the workspace at `root` into `folder`.

    Raises:
        SmokeError: a build failed, or a package has no wheel.
    """
    _run(["uv", "build", "--all-packages", "--wheel", "--out-dir", folder], folder=root)
    wheels = tuple(sorted(folder.glob("*.whl")))
    built = {wheel.name.partition("-")[0] for wheel in wheels}
    wanted = {path.parent.name.replace("-", "_") for path in (root / "packages").glob("*/pyproject.toml")}
    if not wanted or built != wanted:
        raise SmokeError(f"wheels of {sorted(wanted)} were wanted, those of {sorted(built)} were built")
    return wheels


def inspect_wheel(wheel: Path) -> Iterator[str]:
    """Yield what is wrong with the contents of a wheel."""
    module = wheel.name.partition("-")[0]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    if f"{module}/py.typed" not in names:
        yield f"{wheel.name} has no {module}/py.typed; type checkers would ignore its annotations"
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
        yield f"{wheel.name} has no LICENSE"
    for name in names:
        top = name.partition("/")[0]
        if top != module and not top.endswith(".dist-info"):
            yield f"{wheel.name} brings {name}, which is not part of {module}"
    if wheel.stat().st_size > MAX_WHEEL_BYTES:
        yield f"{wheel.name} has {wheel.stat().st_size} bytes, more than {MAX_WHEEL_BYTES}; what crept in?"


def install(wheels: Sequence[Path], folder: Path) -> Path:
    """Install wheels into a fresh environment that sees the running one's third parties, and return its Python."""
    _run(["uv", "venv", "--python", sys.executable, folder], folder=folder.parent)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    _run(["uv", "pip", "install", "--python", python, "--no-deps", "--offline", *wheels], folder=folder)
    site = _run([python, "-I", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder=folder).strip()
    third_parties = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    Path(site, "third_parties.pth").write_text("\n".join(sorted(third_parties)) + "\n", encoding="utf-8")
    return python


def inspect_installed(module: str) -> Iterator[str]:
    """Yield what is wrong with an installed package, seen from inside the environment that it was installed into."""
    origin = Path(importlib.import_module(module).__file__ or "")
    if not origin.resolve().is_relative_to(Path(sys.prefix).resolve()):
        yield f"{module} was imported from {origin}, not from the wheel"
    for name in getattr(importlib.import_module(module), "__all__", ()):
        try:
            is_there = hasattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            # What ComfyUI looks for in the node pack is made from ComfyUI's own classes, and needs it.
            is_there = error.name in ("comfy_api", "folder_paths")
        if not is_there:
            yield f"{module}.{name} is listed in __all__ and does not exist"
    for text in importlib.metadata.requires(module) or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{module} requires {text}, and {requirement.name} is not there"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{module} requires {text}, and {requirement.name} {found} is there"


def _inside(modules: Sequence[str]) -> int:
    """Check the installed `modules`; runs in the fresh environment."""
    faults = 0
    for module in modules:
        found = list(inspect_installed(module))
        faults += len(found)
        state = "; ".join(found) or "imported from its wheel, requirements met"
        print(f"{module} {importlib.metadata.version(module)}: {state}")
    return 1 if faults else 0


def smoke(root: Path, work: Path) -> None:
    """Build, install and try every package of the workspace at `root`, below the folder `work`.

    Raises:
        SmokeError: something is wrong.
    """
    wheels = build(root, work / "dist")
    faults = [fault for wheel in wheels for fault in inspect_wheel(wheel)]
    if faults:
        raise SmokeError("\n".join(faults))
    python = install(wheels, work / "venv")
    modules = [wheel.name.partition("-")[0] for wheel in wheels]
    print(_run([python, "-I", Path(__file__).resolve(), "--inside", *modules], folder=work), end="")
    for command in COMMANDS:
        print(f"$ {' '.join(command)}")
        print(_run([python.parent / command[0], *command[1:]], folder=work), end="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the smoke test and print what was found; return the exit code."""
    parser = argparse.ArgumentParser(description="Build all wheels and try them outside the workspace.")
    parser.add_argument("--root", type=Path, default=ROOT, help="workspace root (default: this one)")
    parser.add_argument("--inside", nargs="+", metavar="MODULE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.inside:
        return _inside(options.inside)
    if shutil.which("uv") is None:
        print("uv is not on the PATH; install it with: pip install uv")
        return 1
    with tempfile.TemporaryDirectory(prefix="torchspan-wheels-") as work:
        try:
            smoke(options.root, Path(work))
        except SmokeError as error:
            print(error)
            return 1
    print("every wheel works outside the workspace")
    return 0


if __name__ == "__main__":
    sys.exit(main())
