from __future__ import annotations

import copy
import pickle
from pathlib import Path

import gguf_bytes as raw
import pytest

import gguf_loader
from gguf_loader import GgufError, GgufFormatError, read_header

ERRORS = [getattr(gguf_loader, name) for name in gguf_loader.__all__ if name.endswith("Error")]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_crosses_a_process_boundary_whole(kind: type[GgufError]) -> None:
    error = kind("broken", remedy="mend it", path="/models/a.gguf", field="tensor 'x' dims", offset_bytes=12)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error) == "/models/a.gguf: tensor 'x' dims at byte 12: broken; mend it"
        assert vars(again) == vars(error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (GgufError("broken"), "broken"),
        (GgufError("broken", remedy="mend it"), "broken; mend it"),
        (GgufError("broken", path="a.gguf"), "a.gguf: broken"),
        (GgufError("broken", field="version"), "version: broken"),
        (GgufError("broken", field="version", offset_bytes=4), "version at byte 4: broken"),
        (GgufError("broken", offset_bytes=4), "broken"),
    ],
)
def test_a_message_has_what_is_known_in_one_order(error: GgufError, text: str) -> None:
    assert str(error) == text


def test_one_except_clause_catches_whatever_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "wrong.gguf"
    for data in (b"", b"GGUF", b"GGUF\4\0\0\0", raw.File(tensors=[raw.Tensor(kind=99)]).bytes()):
        path.write_bytes(data)
        with pytest.raises(GgufError):
            read_header(path)


def test_an_error_carries_its_parts_for_whoever_formats_it_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(b"GGUF\3\0\0\0\0")
    with pytest.raises(GgufFormatError) as caught:
        read_header(path)
    error = caught.value
    assert (error.path, error.field, error.offset_bytes) == (str(path), "tensor count", 8)
    assert error.reason == "the file ends at byte 9, inside this field"
    assert error.remedy == "the file is damaged or incomplete: fetch or convert it again"
