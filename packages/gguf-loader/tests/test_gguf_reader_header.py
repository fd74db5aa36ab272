from __future__ import annotations

import pickle
import struct
from math import prod
from pathlib import Path
from typing import Any

import gguf
import gguf_bytes as raw
import numpy as np
import pytest

from gguf_loader import GGML_TYPES, GgmlType, GgufArray, ValueType, open_gguf, read_header

SCALARS: dict[str, tuple[str, Any, ValueType]] = {
    "a.u8": ("add_uint8", 255, ValueType.UINT8),
    "a.i8": ("add_int8", -128, ValueType.INT8),
    "a.u16": ("add_uint16", 65_535, ValueType.UINT16),
    "a.i16": ("add_int16", -32_768, ValueType.INT16),
    "a.u32": ("add_uint32", 2**32 - 1, ValueType.UINT32),
    "a.i32": ("add_int32", -(2**31), ValueType.INT32),
    "a.f32": ("add_float32", 0.5, ValueType.FLOAT32),
    "a.bool": ("add_bool", True, ValueType.BOOL),
    "a.str": ("add_string", "größer als 😀", ValueType.STRING),
    "a.u64": ("add_uint64", 2**64 - 1, ValueType.UINT64),
    "a.i64": ("add_int64", -(2**63), ValueType.INT64),
    "a.f64": ("add_float64", 0.1, ValueType.FLOAT64),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the gguf package's writer: every value type, arrays, and a tensor of every type it can write."""
    path = tmp_path_factory.mktemp("gguf") / "all.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    for key, (method, content, _) in SCALARS.items():
        getattr(writer, method)(key, content)
    writer.add_array("b.ints", [1, -2, 3])
    writer.add_array("b.floats", [0.5, 0.25])
    writer.add_array("b.bools", [True, False, True])
    writer.add_array("b.strings", ["", "one", "zwölf"])
    rng = np.random.default_rng(0)
    for kind in written_types():
        if kind.is_quantized:
            blocks = rng.integers(0, 256, (3, 2 * kind.type_size), dtype=np.uint8)
            writer.add_tensor(f"t.{kind}", blocks, raw_dtype=gguf.GGMLQuantizationType(kind.id))
        else:
            content = rng.integers(0, 256, 6 * kind.type_size, dtype=np.uint8).view(native_dtype(kind)).reshape(3, 2)
            writer.add_tensor(f"t.{kind}", content, raw_dtype=gguf.GGMLQuantizationType(kind.id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def written_types() -> list[GgmlType]:
    known = gguf.GGMLQuantizationType.__members__
    return [kind for name, kind in GGML_TYPES.items() if name in known and name not in ("Q8_1", "BF16")]


def native_dtype(kind: GgmlType) -> str:
    return {"F": "f", "I": "i"}[kind.name[0]] + str(kind.type_size)


@pytest.mark.parametrize("key", SCALARS)
def test_every_scalar_type_comes_back_with_its_value_and_type(written: Path, key: str) -> None:
    _, content, kind = SCALARS[key]
    metadata = read_header(written).metadata
    assert metadata[key] == content
    assert type(metadata[key]) is type(content)
    assert metadata.value_type(key) is kind


def test_arrays_stay_in_the_file_until_they_are_read(written: Path) -> None:
    metadata = read_header(written).metadata
    ints = metadata["b.ints"]
    assert isinstance(ints, GgufArray)
    assert (len(ints), ints.value_type) == (3, ValueType.INT32)
    assert metadata.array("b.ints").tolist() == [1, -2, 3]
    assert metadata.array("b.floats").tolist() == [0.5, 0.25]
    assert metadata.array("b.bools").tolist() == [True, False, True]
    assert metadata.array("b.strings").tolist() == ["", "one", "zwölf"]
    assert metadata.array("b.strings").raw_strings() == [b"", b"one", "zwölf".encode()]
    assert ints.numpy().dtype == np.dtype("<i4")


def test_header_agrees_with_the_reader_of_the_gguf_package(written: Path) -> None:
    ours = open_gguf(written)
    theirs = gguf.GGUFReader(written)
    assert len(ours.header.tensors) == len(theirs.tensors) == len(written_types())
    for tensor in theirs.tensors:
        info = ours.header.tensors[tensor.name]
        assert info.shape == tuple(int(dim) for dim in reversed(tensor.shape))
        assert info.ggml_type.id == tensor.tensor_type
        assert info.size_bytes == tensor.n_bytes
        assert info.offset_bytes + ours.header.data_offset_bytes == tensor.data_offset
        assert ours.tensor_bytes(tensor.name).numpy().tobytes() == tensor.data.tobytes()
    assert list(ours.header.tensors) == [tensor.name for tensor in theirs.tensors]


def test_sizes_and_type_counts_are_those_of_the_tensors(written: Path) -> None:
    header = read_header(written)
    assert header.architecture == "flux"
    assert header.sizes()["t.Q4_K"] == ((3, 512), 3 * 2 * 144)
    assert header.sizes()["t.F16"] == ((3, 2), 12)
    assert header.type_counts() == {kind.name: 1 for kind in written_types()}


@pytest.mark.parametrize("kind", GGML_TYPES.values(), ids=str)
def test_a_tensor_of_every_type_is_read_with_its_own_size(tmp_path: Path, kind: GgmlType) -> None:
    dims = (2 * kind.block_size, 3)
    data = bytes(range(256)) * 8
    data = data[: kind.size_bytes(prod(dims))]
    file = open_gguf(raw.File(tensors=[raw.Tensor("t", dims, kind.id, data)]).write(tmp_path / "t.gguf"))
    assert file.header.tensors["t"].shape == (3, 2 * kind.block_size)
    assert file.header.tensors["t"].ggml_type is kind
    assert file.tensor_bytes("t").numpy().tobytes() == data


def test_everything_that_the_writer_refuses_but_real_files_have_is_read(tmp_path: Path) -> None:
    name = "n" * 127
    tensors = [
        raw.Tensor(name, (2, 1, 2, 1, 3), raw.F32, bytes(48)),
        raw.Tensor("ü" * 127 + "x", (1,), raw.F32, bytes(4)),
        raw.Tensor("none", (), raw.F32, struct.pack("<f", 7)),
    ]
    file = open_gguf(raw.File(tensors=tensors).write(tmp_path / "odd.gguf"))
    assert file.header.tensors[name].shape == (3, 1, 2, 1, 2)
    assert file.header.tensors["ü" * 127 + "x"].shape == (1,)
    assert file.header.tensors["none"].shape == ()
    assert file.native_tensor("none").item() == 7


def test_version_2_is_read_as_version_3(tmp_path: Path) -> None:
    rich = raw.rich()
    three = read_header(rich.write(tmp_path / "3.gguf"))
    rich.version = 2
    two = read_header(rich.write(tmp_path / "2.gguf"))
    assert (two.version, three.version) == (2, 3)
    assert two.sizes() == three.sizes()
    assert two.metadata.host_view(arrays=True) == three.metadata.host_view(arrays=True)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_data_starts_at_the_alignment_of_the_file(tmp_path: Path, alignment: int) -> None:
    file = raw.rich()
    file.alignment = alignment
    file.pairs[1] = raw.pair("general.alignment", raw.U32, alignment)
    header = read_header(file.write(tmp_path / "aligned.gguf"))
    assert header.alignment == alignment
    assert header.data_offset_bytes % alignment == 0
    assert all(tensor.offset_bytes % alignment == 0 for tensor in header.tensors.values())
    assert open_gguf(header.path).native_tensor("norm").tolist() == [1, 2, 3, 4]


def test_original_shape_replaces_the_flattened_one(tmp_path: Path) -> None:
    file = open_gguf(raw.rich().write(tmp_path / "rich.gguf"))
    assert file.header.tensors["patch"].shape == (2, 3, 1, 2, 2)
    assert file.native_tensor("patch")[1, 2, 0, 1, 1] == 23
    assert file.header.tensors["deep"].shape == (3, 1, 2, 1, 2)


def test_a_vocabulary_alone_is_a_whole_file(tmp_path: Path) -> None:
    tokens = [f"▁{index}" for index in range(1000)]
    pairs = [raw.pair("tokenizer.ggml.tokens", raw.ARRAY, raw.array(raw.STRING, tokens))]
    header = read_header(raw.File(pairs=pairs).write(tmp_path / "vocab.gguf"))
    assert header.tensors == {}
    assert header.architecture is None
    assert header.metadata.array("tokenizer.ggml.tokens").strings() == tokens


def test_gaps_between_tensors_and_any_order_of_the_data_are_accepted(tmp_path: Path) -> None:
    tensors = [raw.Tensor("late", data=bytes(16), offset=64), raw.Tensor("early", data=bytes(16), offset=0)]
    path = tmp_path / "order.gguf"
    path.write_bytes(raw.File(tensors=tensors).bytes() + struct.pack("<4f", 1, 2, 3, 4))
    file = open_gguf(path)
    assert list(file.header.tensors) == ["late", "early"]
    assert file.native_tensor("late").tolist() == [1, 2, 3, 4]
    assert file.native_tensor("early").tolist() == [0, 0, 0, 0]


def test_a_header_is_data_that_can_be_sent_to_another_process(tmp_path: Path) -> None:
    header = read_header(raw.rich().write(tmp_path / "rich.gguf"))
    again = pickle.loads(pickle.dumps(header))
    assert again == header
    assert again.metadata.array(f"many.{raw.STRING}").strings() == ["snö ☃"] * 3


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw.rich().write(tmp_path / "rich.gguf")
    monkeypatch.chdir(tmp_path)
    header = read_header("rich.gguf")
    monkeypatch.chdir("/")
    assert header.metadata.array(f"many.{raw.U8}").tolist() == [200, 200, 200]
