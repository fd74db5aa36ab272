"""A file that is no safetensors is named for what it is, with one remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from block_discovery import HeaderError, read_safetensors_header

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
FILES = {
    "a Git LFS pointer": LFS,
    "a web page": b"\n<!DOCTYPE html><html><body>Access to model is restricted</body></html>",
    "a GGUF file": b"GGUF\3\0\0\0" + bytes(64),
    "a PyTorch or zip file": b"PK\3\4" + bytes(64),
    "a JSON text": b'{"metadata": {}, "weight_map": {}}',
    "a file that starts with zeros": bytes(4096),
}


@pytest.mark.parametrize("found", FILES)
def test_a_foreign_file_is_named(found: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[found])
    with pytest.raises(HeaderError, match=f"this is {found}") as refused:
        read_safetensors_header(path)
    assert str(refused.value).count(str(path)) == 1
    assert "bytes" not in str(refused.value)
