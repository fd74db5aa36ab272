"""Only regular files are opened: nothing waits, nothing reads a device, and a file that has changed is noticed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from discovery_testing import header_of, write_safetensors

from block_discovery import (
    BlockDiscoveryError,
    ChangedFileError,
    NotRegularFileError,
    discover_file,
    open_regular,
    read_safetensors_header,
    read_safetensors_index,
    stamp_of,
)

needs_posix = pytest.mark.skipif(os.name != "posix", reason="pipes, sockets and devices as files are POSIX")


def folder(path: Path) -> str:
    path.mkdir()
    return "a folder"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "a pipe"


def local_socket(path: Path) -> str:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return "a socket"


def device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "a device"


@needs_posix
@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [folder, pipe, local_socket, device])
@pytest.mark.parametrize("read", [open_regular, read_safetensors_header, read_safetensors_index, discover_file])
def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], str], read: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)  # The path of a socket may have 108 characters.
    path = Path("m.safetensors")
    kind = make(path)
    with pytest.raises(NotRegularFileError, match=f"m.safetensors: this is {kind}; name a regular file") as caught:
        read(path)
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, BlockDiscoveryError)


@needs_posix
@pytest.mark.timeout(20)
def test_a_shard_that_is_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m-1.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "m-1.safetensors"}}')
    with pytest.raises(NotRegularFileError, match="a pipe"):
        read_safetensors_index(index)


@needs_posix
@pytest.mark.timeout(20)
def test_a_pipe_put_in_place_of_the_file_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, waiting = tmp_path / "m", tmp_path / "pipe"
    path.write_bytes(b"x")
    os.mkfifo(waiting)
    regular = path.stat()
    monkeypatch.setattr(Path, "stat", lambda self: regular)
    with pytest.raises(NotRegularFileError, match="a pipe"):
        open_regular(waiting)


def test_an_absent_file_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "absent")


def written_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(40)
        file.write(b"\xff")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def shortened(path: Path) -> None:
    status = path.stat()
    os.truncate(path, status.st_size - 1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [written_in_place, replaced, shortened])
def test_a_file_that_has_changed_since_its_header_was_read_is_refused(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = write_safetensors(tmp_path / "m.safetensors", header_of({"a": 4}), 4)
    stamp = read_safetensors_header(path).stamp
    with open_regular(path, stamp=stamp) as file:
        assert stamp_of(file) == stamp_of(path) == stamp
    change(path)
    with pytest.raises(ChangedFileError, match="has changed since its header was read"):
        open_regular(path, stamp=stamp)


def test_an_index_hands_on_the_headers_of_its_shards(tmp_path: Path) -> None:
    for shard, name in (("m-2.safetensors", "b"), ("m-1.safetensors", "a")):
        write_safetensors(tmp_path / shard, header_of({name: 4}), 4)
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"b": "m-2.safetensors", "a": "m-1.safetensors"}}')
    header = read_safetensors_index(index)
    assert [(shard.path.name, [*shard.tensors]) for shard in header.shards] == [
        ("m-2.safetensors", ["b"]),
        ("m-1.safetensors", ["a"]),
    ]
    assert all(shard.stamp == stamp_of(shard.path) and shard.starts for shard in header.shards)
    assert header.stamp == stamp_of(index)
