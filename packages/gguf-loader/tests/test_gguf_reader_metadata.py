from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

import gguf_bytes as raw
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_loader import (
    GgufFormatError,
    GgufHeader,
    GgufMetadata,
    GgufMetadataError,
    ValueType,
    get_gguf_metadata,
    read_header,
)

LTX_CONFIG = json.dumps({"transformer": {"num_layers": 48, "name": "LTXAV"}, "vae": {"_class_name": "Autoencoder"}})


def header_of(tmp_path: Path, *pairs: bytes) -> GgufHeader:
    return read_header(raw.File(pairs=list(pairs)).write(tmp_path / "metadata.gguf"))


def test_the_host_sees_every_scalar_as_text(tmp_path: Path) -> None:
    header = header_of(
        tmp_path,
        raw.pair("config", raw.STRING, LTX_CONFIG),
        raw.pair("is_512", raw.BOOL, False),
        raw.pair("tae_latent_channels", raw.U32, 16),
        raw.pair("epsilon", raw.FLOAT32, 1e-6),
        raw.pair("theta", raw.FLOAT64, 0.1),
        raw.pair("big", raw.U64, 2**64 - 1),
        raw.pair("tokens", raw.ARRAY, raw.array(raw.STRING, ["a", "ä"])),
        raw.pair("scores", raw.ARRAY, raw.array(raw.FLOAT32, [0.5, -1.0])),
    )
    view = header.metadata.host_view()
    assert view == {
        "config": LTX_CONFIG,
        "is_512": "false",
        "tae_latent_channels": "16",
        "epsilon": "1e-06",
        "theta": "0.1",
        "big": "18446744073709551615",
    }
    assert json.loads(view["config"])["transformer"]["num_layers"] == 48
    with_arrays = header.metadata.host_view(arrays=True)
    assert json.loads(with_arrays["tokens"]) == ["a", "ä"]
    assert json.loads(with_arrays["scores"]) == [0.5, -1.0]
    assert {key: text for key, text in with_arrays.items() if key in view} == view


def test_nothing_is_dropped_from_the_host_view(tmp_path: Path) -> None:
    header = read_header(raw.rich().write(tmp_path / "rich.gguf"))
    scalars = {key for key in header.metadata if header.metadata.value_type(key) is not ValueType.ARRAY}
    assert set(header.metadata.host_view()) == scalars
    assert set(header.metadata.host_view(arrays=True)) == set(header.metadata)


@given(number=st.floats(width=32))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_float32_survives_its_text(tmp_path: Path, number: float) -> None:
    text = header_of(tmp_path, raw.pair("x", raw.FLOAT32, number)).metadata.host_view()["x"]
    again = np.float32(json.loads(text))
    assert struct.pack("<f", again) == struct.pack("<f", number) or math.isnan(number)


def test_get_gguf_metadata_takes_a_path_or_a_header(tmp_path: Path) -> None:
    path = raw.rich().write(tmp_path / "rich.gguf")
    header = read_header(path)
    assert get_gguf_metadata(path) == get_gguf_metadata(str(path)) == get_gguf_metadata(header)
    assert get_gguf_metadata(header, arrays=True)[f"many.{raw.U8}"] == "[200, 200, 200]"


def test_typed_getters_return_the_value_or_say_what_is_there_instead(tmp_path: Path) -> None:
    metadata = header_of(
        tmp_path,
        raw.pair("text", raw.STRING, "yes"),
        raw.pair("number", raw.I16, -3),
        raw.pair("flag", raw.BOOL, True),
        raw.pair("list", raw.ARRAY, raw.array(raw.U8, [1, 2])),
    ).metadata
    assert metadata.text("text") == "yes"
    assert metadata.integer("number") == -3
    assert metadata.flag("flag") is True
    assert metadata.array("list").tolist() == [1, 2]
    with pytest.raises(GgufMetadataError, match=r"metadata 'number' at byte .*: INT16, where a string is needed"):
        metadata.text("number")
    with pytest.raises(GgufMetadataError, match=r"metadata 'flag' at byte .*: BOOL, where an integer is needed"):
        metadata.integer("flag")
    with pytest.raises(GgufMetadataError, match="STRING, where a bool is needed"):
        metadata.flag("text")
    with pytest.raises(GgufMetadataError, match="STRING, where an array is needed"):
        metadata.array("text")
    with pytest.raises(GgufMetadataError, match="metadata 'absent': missing; the file lacks"):
        metadata.text("absent")


def test_metadata_is_a_mapping_in_file_order(tmp_path: Path) -> None:
    metadata = header_of(tmp_path, raw.pair("b", raw.U8, 1), raw.pair("a", raw.U8, 2)).metadata
    assert isinstance(metadata, GgufMetadata)
    assert dict(metadata) == {"b": 1, "a": 2}
    assert list(metadata) == ["b", "a"]
    assert metadata.get("c") is None
    assert "2 keys" in repr(metadata)
    assert metadata.value_offset("b") == 24 + 8 + 1 + 4


def test_an_array_of_strings_is_not_numbers_and_the_reverse(tmp_path: Path) -> None:
    metadata = read_header(raw.rich().write(tmp_path / "rich.gguf")).metadata
    with pytest.raises(GgufMetadataError, match=r"an array of strings, not of numbers; read it with strings\(\)"):
        metadata.array(f"many.{raw.STRING}").numpy()
    with pytest.raises(GgufMetadataError, match=r"an array of FLOAT64, not of strings; read it with numpy\(\)"):
        metadata.array(f"many.{raw.FLOAT64}").strings()


def test_a_float32_in_an_array_is_written_as_one_that_stands_alone(tmp_path: Path) -> None:
    numbers = [0.1, -2.5e-20, 3.0, float("inf")]
    pairs = [raw.pair("a", raw.ARRAY, raw.array(raw.FLOAT32, numbers)), raw.pair("one", raw.FLOAT32, 0.1)]
    view = read_header(raw.File(pairs=pairs).write(tmp_path / "a.gguf")).metadata.host_view(arrays=True)
    assert view == {"a": "[0.1, -2.5e-20, 3.0, Infinity]", "one": "0.1"}


@pytest.mark.parametrize("kind", [raw.STRING, raw.BOOL, raw.FLOAT32, raw.FLOAT64])
def test_only_an_array_of_integers_has_integers(tmp_path: Path, kind: int) -> None:
    metadata = read_header(raw.rich().write(tmp_path / "rich.gguf")).metadata
    with pytest.raises(GgufMetadataError, match=rf"'many\.{kind}': an array of .*, not of integers"):
        metadata.array(f"many.{kind}").integers()
    assert metadata.array(f"many.{raw.U64}").integers() == (2**63 + 1,) * 3


@pytest.mark.parametrize("how", ["longer", "touched"])
def test_an_array_is_not_read_from_a_file_that_was_replaced(tmp_path: Path, how: str) -> None:
    path = raw.rich().write(tmp_path / "rich.gguf")
    header = read_header(path)
    if how == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
        os.utime(path, ns=(header.stamp.mtime_ns, header.stamp.mtime_ns))
    else:
        os.utime(path, ns=(1, 1))
    with pytest.raises(GgufFormatError, match="the file was changed after its header was read; read the header again"):
        header.metadata.array(f"many.{raw.U8}").numpy()
