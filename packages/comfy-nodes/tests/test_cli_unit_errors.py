"""Laws of refusals about files: the file, what is wrong with it, what to do; nothing in the system's own code."""

from __future__ import annotations

import errno
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from cli_gguf import write_hollow_gguf
from cli_testing import transformer_shapes, write_header
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comfy_nodes.cli import main
from comfy_nodes.cli._exit import CommandError, ExitCode, check_target, exits_with

MACHINE = ["--device", "cuda:0=24gb", "--device", "cpu=64gb", "--link", "cpu=25"]
NEEDS_RAY_PARALLEL = pytest.mark.skipif(find_spec("ray_parallel") is None, reason="ray-parallel is not installed")
READERS = [
    pytest.param(["plan", "{file}", "--spec", "cpu,*", *MACHINE], ExitCode.REFUSED, id="plan"),
    pytest.param(["gguf", "info", "{file}"], ExitCode.REFUSED, id="gguf info"),
    pytest.param(["sp", "check", "{file}", "module:probe"], ExitCode.USAGE, id="sp check", marks=NEEDS_RAY_PARALLEL),
]


def told(error: OSError) -> str:
    with pytest.raises(CommandError) as refused, exits_with(ExitCode.REFUSED, OSError):
        raise error
    assert refused.value.__cause__ is error
    return str(refused.value)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOENT, "a/b: no such file or directory; check the name and the folder"),
        (errno.EISDIR, "a/b: is a directory; name a file"),
        (errno.EEXIST, "a/b: file exists; choose another name, or move away what is there"),
        (errno.ENOTDIR, "a/b: not a directory; choose a folder; part of this path is a file"),
        (errno.EACCES, "a/b: permission denied; choose a place where you have the rights, or change them"),
        (errno.ENOSPC, "a/b: no space left on device"),
    ],
)
def test_errors_of_files_name_the_file_the_reason_and_the_remedy(number: int, expected: str) -> None:
    assert told(OSError(number, os.strerror(number), "a/b")) == expected


@pytest.mark.parametrize("error", [OSError("in our own words"), OSError(errno.EIO, "in our own words")])
def test_an_error_without_a_file_keeps_its_words(error: OSError) -> None:
    assert told(error) == str(error)


@pytest.mark.parametrize(("words", "code"), READERS)
@pytest.mark.parametrize("name", ["absent", "absent.gguf", "folder", "folder.gguf", "file/below.gguf", "loop.gguf"])
def test_every_command_that_reads_a_file_refuses_it_by_name(
    name: str, words: list[str], code: ExitCode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("folder", "folder.gguf"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    assert main([word.format(file=tmp_path / name) for word in words]) == code
    captured = capsys.readouterr()
    assert f": {tmp_path / name}" in captured.err
    assert "Errno" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(("words", "code"), READERS)
@pytest.mark.parametrize("data", [b"", b"GGUF", b"\xff" * 64, b'{"format":', b"\x08\0\0\0\0\0\0\0{}"])
def test_every_command_that_reads_a_file_refuses_what_is_not_in_it(
    data: bytes, words: list[str], code: ExitCode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "any"
    path.write_bytes(data)
    assert main([word.format(file=path) for word in words]) == code
    captured = capsys.readouterr()
    assert str(path) in captured.err
    assert captured.out == ""


Harm = tuple[int, bytes]
harms: st.SearchStrategy[list[Harm]] = st.lists(
    st.tuples(st.integers(0, 1500), st.binary(max_size=4)), min_size=1, max_size=3
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One good file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    shapes = transformer_shapes(2, 64)
    write_header(folder / "a.safetensors", shapes, body=True)
    pytest.importorskip("gguf")
    write_hollow_gguf(folder / "a.gguf", shapes, lambda name: "F16")
    return {"safetensors": folder / "a.safetensors", "gguf": folder / "a.gguf"}


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(harm=harms, cut=st.none() | st.integers(0, 3000))
def test_a_damaged_header_is_planned_or_refused_in_words(
    kind: str, harm: list[Harm], cut: int | None, whole: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever bytes stand in a file: no traceback, and a refusal names the file."""
    content = bytearray(whole[kind].read_bytes())
    for place, planted in harm:
        content[place : place + len(planted)] = planted
    path = whole[kind].with_name(f"damaged.{kind}")
    path.write_bytes(content[:cut])
    code = main(["plan", str(path), "--spec", "cuda:0,50%;cpu,*", *MACHINE])
    captured = capsys.readouterr()
    assert code in (ExitCode.OK, ExitCode.REFUSED)
    assert (code == ExitCode.OK) == ("Final assignment" in captured.out)
    assert code == ExitCode.OK or captured.err.startswith(f"torchspan plan: {path}")


def test_a_target_can_be_written_where_its_folder_is(tmp_path: Path) -> None:
    check_target(tmp_path / "new")
    (tmp_path / "old").touch()
    check_target(tmp_path / "old")


@pytest.mark.parametrize(
    ("target", "reason"),
    [("folder", "is a folder; name a file in it"), ("gone/file", "there is no folder .*/gone; make it")],
)
def test_a_target_that_cannot_be_a_file_is_refused(target: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CommandError, match=reason):
        check_target(tmp_path / target)
