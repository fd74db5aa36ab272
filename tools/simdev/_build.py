"""Compile the native library with one compiler command, once per torch version, compiler and source text."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from simdev._errors import BuildError, CompilerNotFoundError

MAIN_SOURCE = "simdev.cpp"
"""The one translation unit; it includes the other files, because torch's headers cost most of the compile time."""

_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter")


def cache_directory() -> Path:
    """Where built libraries are kept: `$XDG_CACHE_HOME/torchspan/simdev`, by default below `~/.cache`."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification asks that a relative path be ignored.
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "torchspan" / "simdev"


def find_compiler() -> str:
    """Return the absolute path of the C++ compiler: `$CXX` where it is set, else g++.

    Raises:
        CompilerNotFoundError: no such program is on the PATH.
    """
    wanted = os.environ.get("CXX") or "g++"
    found = shutil.which(wanted)
    if found is None:
        raise CompilerNotFoundError(
            f"C++ compiler {wanted!r}",
            "it is not on the PATH, and the simulated devices are compiled on first use",
            "install g++ (Debian, Ubuntu: apt-get install g++), or name a compiler in the CXX variable",
        )
    return found


def build(*, source_dir: Path | None = None, cache_dir: Path | None = None) -> Path:
    """Return the compiled library, compiling it only when no built one fits.

    One fits when it was built for this exact torch version (the tables of virtual functions that the library fills in
    change between versions), by this compiler, from this source text. Two processes may build at once: each writes a
    separate file and renames it into place.

    Args:
        source_dir: folder with `simdev.cpp` and what it includes; None takes the sources of this package.
        cache_dir: folder of the built libraries; None takes `cache_directory()`.

    Returns:
        path of the shared library.

    Raises:
        CompilerNotFoundError: there is no compiler.
        BuildError: it refused; carries what it printed.
    """
    sources = source_dir or Path(__file__).with_name("native")
    compiler = find_compiler()
    target = (cache_dir or cache_directory()) / f"simdev-{torch.__version__}-{_digest(sources, compiler)}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as scratch:
        output = Path(scratch) / target.name
        _compile(compiler, sources / MAIN_SOURCE, output)
        output.replace(target)
    return target


def _compile(compiler: str, source: Path, output: Path) -> None:
    root = Path(torch.__file__).parent
    headers, libraries = root / "include", root / "lib"
    command = [
        compiler,
        *_FLAGS,
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        # -isystem: warnings are wanted for our files, not for torch's
        *("-isystem", str(headers), "-isystem", str(headers / "torch/csrc/api/include")),
        *(str(source), "-o", str(output)),
        *(f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}", "-ldl"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(
            f"{source} for torch {torch.__version__}",
            f"{compiler} ended with status {result.returncode}",
            "the sources fit torch 2.14; with another version look for a changed interface in the messages above",
            compiler_output=result.stdout + result.stderr,
        )


def _digest(sources: Path, compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [version.encode(), " ".join(_FLAGS).encode(), str(torch.__file__).encode()]
    for file in sorted(sources.glob("*.[ch]pp")):
        parts += [file.name.encode(), file.read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
