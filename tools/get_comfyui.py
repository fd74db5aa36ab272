"""Put a ComfyUI checkout where the tests that need the real host look for it.

Run `uv run python tools/get_comfyui.py --from SOURCE`; SOURCE is a git directory on this machine or a URL. The checkout
goes to COMFYUI_PATH, else to ~/.cache/torchspan/ComfyUI. With `--version 0.23.0` it is that release, found by its tag
or, in a copy without tags, by the commit that set the version.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

VERSION_FILE = "comfyui_version.py"


class CheckoutError(Exception):
    """The checkout cannot be made; the message says why, and what would help."""


def checkout_folder() -> Path:
    """Where the checkout belongs: COMFYUI_PATH, else the cache folder."""
    given = os.environ.get("COMFYUI_PATH")
    return Path(given) if given else Path.home() / ".cache" / "torchspan" / "ComfyUI"


def find_comfyui() -> Path | None:
    """The checkout, or None."""
    folder = checkout_folder()
    return folder if is_comfyui(folder) else None


def is_comfyui(folder: Path) -> bool:
    """Whether a folder holds ComfyUI's source."""
    return (folder / "main.py").is_file() and (folder / "comfy" / "ops.py").is_file()


def read_version(folder: Path) -> str:
    """The version of the ComfyUI in a folder.

    Raises:
        CheckoutError: the folder holds no ComfyUI of version 0.3 or newer.
    """
    path = folder / VERSION_FILE
    found = re.search(r'__version__ = "([^"]+)"', path.read_text(encoding="utf-8")) if path.is_file() else None
    if found is None:
        raise CheckoutError(f"{path} names no version; is {folder} ComfyUI 0.3 or newer?")
    return found.group(1)


def get(source: str, folder: Path, *, version: str | None = None) -> str:
    """Clone ComfyUI and move the complete checkout to `folder`; what was there before is left alone.

    Files that the source lists and does not have (a mirror may lack large ones) are left out.

    Args:
        source: git directory or URL.
        folder: where the checkout goes; must not exist or be empty.
        version: a release such as ``"0.23.0"``; None takes what the source has checked out.

    Returns:
        The version that is there now.

    Raises:
        CheckoutError: there is something in the folder, the source cannot be cloned, is not ComfyUI, or does not know
            the version. Nothing is left behind.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckoutError(f"{folder} exists already; remove it, or choose another place with --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".comfyui-", dir=folder.parent) as work:
        clone = Path(work, "clone")
        _git("clone", "--quiet", "--no-checkout", "--", source, str(clone))
        revision = "HEAD" if version is None else _revision(clone, version)
        _git("-C", str(clone), "update-ref", "--no-deref", "HEAD", _git("-C", str(clone), "rev-parse", f"{revision}^0"))
        missing = _check_out(clone)
        if not is_comfyui(clone):
            raise CheckoutError(f"{source} is a git repository, but not ComfyUI: main.py or comfy/ops.py is missing")
        found = read_version(clone)
        if folder.is_dir():
            folder.rmdir()
        clone.rename(folder)
    for name in missing:
        print(f"left out, because {source} does not have its contents: {name}", file=sys.stderr)
    return found


def _revision(clone: Path, version: str) -> str:
    """The commit of a release, by its tag or by the commit that set the version."""
    tags = _git("-C", str(clone), "tag", "--list", f"v{version}", version).split()
    if tags:
        return tags[0]
    line = f'__version__ = "{version}"'
    commits = _git(
        "-C", str(clone), "log", "--format=%H", "--reverse", f"-S{line}", "--all", "--", VERSION_FILE
    ).split()
    if not commits:
        raise CheckoutError(f"no tag v{version} and no commit that sets it; give a version that {clone.name} has")
    return commits[0]


def _check_out(clone: Path) -> list[str]:
    """Write the files of HEAD and return the names of those whose contents are not there."""
    _git("-C", str(clone), "read-tree", "HEAD")
    missing = []
    entries = _git("-C", str(clone), "ls-files", "--stage", "-z").split("\0")
    names = {entry.partition("\t")[2]: entry.split()[1] for entry in entries if entry}
    known = subprocess.run(
        ["git", "-C", str(clone), "cat-file", "--batch-check=%(objectname) %(objecttype)"],
        input="\n".join(names.values()),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GIT_NO_LAZY_FETCH": "1"},
    ).stdout.splitlines()
    absent = {line.split()[0] for line in known if line.endswith(" missing")}
    missing = [name for name, blob in names.items() if blob in absent]
    present = "\0".join(name for name in names if name not in set(missing))
    _git("-C", str(clone), "checkout-index", "--force", "-z", "--stdin", text=present)
    return missing


def _git(*arguments: str, text: str | None = None) -> str:
    try:
        done = subprocess.run(["git", *arguments], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CheckoutError("git is not on the PATH; install it") from error
    if done.returncode:
        raise CheckoutError(f"git {arguments[0]} failed with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the checkout and say where it is; return the exit code."""
    parser = argparse.ArgumentParser(description="Put a ComfyUI checkout where the tests look for it.")
    parser.add_argument("--from", dest="source", required=True, metavar="SOURCE", help="git directory or URL")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where (default: COMFYUI_PATH or the cache folder)")
    parser.add_argument("--version", metavar="X.Y.Z", help="a release (default: what the source has checked out)")
    options = parser.parse_args(arguments)
    folder = options.to or checkout_folder()
    try:
        version = get(options.source, folder, version=options.version)
    except CheckoutError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"ComfyUI {version} is in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
