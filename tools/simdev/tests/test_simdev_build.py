"""The build: once per source text, compiler and torch version; safe to do twice at once; errors that can be acted on.

A one-line source stands in for the real one here, so that a test takes a tenth of a second.
"""

from __future__ import annotations

import ctypes
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from simdev import BuildError, CompilerNotFoundError, build
from simdev._build import cache_directory, find_compiler

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")

SOURCE = 'extern "C" __attribute__((visibility("default"))) int answer() { return 42; }\n'

Compile = Callable[[str], Path]


@pytest.fixture
def compile_(tmp_path: Path) -> Compile:
    """Return a function that builds a source text in a cache of its own."""

    def run(text: str) -> Path:
        sources = tmp_path / "native"
        sources.mkdir(exist_ok=True)
        (sources / "simdev.cpp").write_text(text)
        return build(source_dir=sources, cache_dir=tmp_path / "cache")

    return run


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a compiler in front of the real one that writes a line for each compilation."""
    log, compiler = tmp_path / "calls", tmp_path / "counting-g++"
    log.write_text("")
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo call >> {log}\nexec {shutil.which("g++")} "$@"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(compiler))
    return log


def test_what_is_built_can_be_loaded(compile_: Compile) -> None:
    assert ctypes.CDLL(str(compile_(SOURCE))).answer() == 42


def test_a_second_build_does_not_compile(compile_: Compile, calls: Path) -> None:
    assert compile_(SOURCE) == compile_(SOURCE)
    assert calls.read_text() == "call\n"


def test_another_source_text_is_another_library(compile_: Compile, calls: Path) -> None:
    first, second = compile_(SOURCE), compile_(SOURCE.replace("42", "43"))
    assert first != second
    assert ctypes.CDLL(str(second)).answer() == 43
    assert calls.read_text() == "call\ncall\n"


def test_an_included_file_counts_as_source_text(compile_: Compile, tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "value.hpp").write_text("#define VALUE 1\n")
    text = '#include "value.hpp"\n' + SOURCE.replace("42", "VALUE")
    first = compile_(text)
    (tmp_path / "native" / "value.hpp").write_text("#define VALUE 2\n")
    assert [ctypes.CDLL(str(library)).answer() for library in (first, compile_(text))] == [1, 2]


def test_the_torch_version_is_in_the_name_and_the_key(compile_: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_(SOURCE)
    assert torch.__version__ in first.name
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    assert compile_(SOURCE) != first


def test_another_compiler_is_another_key(compile_: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compile_(SOURCE)
    other = tmp_path / "other-g++"
    other.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 99 && exit\nexec {shutil.which("g++")} "$@"\n')
    other.chmod(0o755)
    monkeypatch.setenv("CXX", str(other))
    assert compile_(SOURCE) != first


def test_a_source_that_does_not_compile_shows_what_the_compiler_said(compile_: Compile, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as refused:
        compile_(SOURCE + "int broken() { return no_such_name; }\n")
    assert "no_such_name" in refused.value.compiler_output
    assert "no_such_name" in str(refused.value)
    assert torch.__version__ in refused.value.thing
    assert refused.value.remedy in str(refused.value)
    assert list((tmp_path / "cache").iterdir()) == [], "a failed build leaves nothing behind"


def test_a_missing_compiler_is_named_with_the_remedy(compile_: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilerNotFoundError, match=r"no-such-compiler.*not on the PATH[\s\S]*install g\+\+"):
        compile_(SOURCE)


def test_gplusplus_is_the_compiler_where_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert Path(find_compiler()).name == "g++"


def test_two_may_build_at_once(compile_: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compiler waits until the other has started, so that both surely find no library and build one."""
    meeting, compiler = tmp_path / "meeting", tmp_path / "meeting-g++"
    meeting.mkdir()
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\nmktemp -p {meeting} > /dev/null\n'
        f'while [ $(ls {meeting} | wc -l) -lt 2 ]; do :; done\nexec {shutil.which("g++")} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with ThreadPoolExecutor(2) as pool:
        built = [future.result(timeout=60) for future in [pool.submit(compile_, SOURCE) for _ in range(2)]]
    assert built[0] == built[1]
    assert ctypes.CDLL(str(built[0])).answer() == 42
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [built[0].name]
    assert len(list(meeting.iterdir())) == 2


def test_the_cache_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "torchspan" / "simdev"
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_directory() == Path.home() / ".cache" / "torchspan" / "simdev"
