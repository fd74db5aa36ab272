"""The safetensors header: what the reference implementation accepts is read alike, what it refuses is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from discovery_testing import entry, header_of, write_safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from block_discovery import HeaderError, read_safetensors_header

GOOD = header_of({"a": 4, "b": 6})


def test_a_file_of_the_reference_implementation_is_read(tmp_path: Path) -> None:
    tensors = {
        "block.weight": torch.zeros(3, 4, dtype=torch.bfloat16),
        "scale": torch.zeros(()),
        "none": torch.zeros(0, 2),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    header = read_safetensors_header(tmp_path / "m.safetensors")
    assert {name: (info.shape, info.dtype, info.size_bytes) for name, info in header.tensors.items()} == {
        name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes)
        for name, tensor in tensors.items()
    }
    assert header.metadata == {"format": "pt"}
    assert (header.data_bytes, header.missing_bytes) == (28, 0)
    assert header.codes == {"block.weight": "BF16", "scale": "F32", "none": "F32"}


def test_starts_are_where_the_bytes_of_each_tensor_lie(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(5), "a": torch.tensor([7], dtype=torch.uint8), "none": torch.zeros(0)}
    save_file(tensors, tmp_path / "m.safetensors")
    header = read_safetensors_header(tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    for name, tensor in tensors.items():
        start = header.starts[name]
        assert raw[start : start + header.tensors[name].size_bytes] == bytes(tensor.view(torch.uint8).tolist())


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        *(("BOOL", torch.bool), ("U8", torch.uint8), ("I8", torch.int8), ("I16", torch.int16), ("U16", torch.uint16)),
        *(("I32", torch.int32), ("U32", torch.uint32), ("I64", torch.int64), ("U64", torch.uint64)),
        *(("F16", torch.float16), ("BF16", torch.bfloat16), ("F32", torch.float32), ("F64", torch.float64)),
        *(("C64", torch.complex64), ("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)),
        *(("F8_E4M3FNUZ", torch.float8_e4m3fnuz), ("F8_E5M2FNUZ", torch.float8_e5m2fnuz)),
        ("F8_E8M0", getattr(torch, "float8_e8m0fnu", None)),
    ],
)
def test_every_element_type_has_torchs_name_and_size(tmp_path: Path, code: str, dtype: torch.dtype | None) -> None:
    if dtype is None:
        pytest.skip(f"this torch has no type for {code}")
    path = write_safetensors(tmp_path / "m", {"a": entry(code, [8], [0, 8 * dtype.itemsize])}, 8 * dtype.itemsize)
    (info,) = read_safetensors_header(path).tensors.values()
    assert info.dtype == str(dtype).removeprefix("torch.")
    try:
        with safetensors.safe_open(path, "pt") as file:
            assert file.get_slice("a").get_dtype() == code
    except safetensors.SafetensorError:
        if not safetensors.__version__.startswith("0.5."):
            raise
        pytest.skip(f"safetensors 0.5, the lowest that is declared, does not read {code}")


@pytest.mark.parametrize(
    ("code", "bits", "dtype"), [("F4", 4, "float4_e2m1fn_x2"), ("F6_E2M3", 6, None), ("F6_E3M2", 6, None)]
)
def test_types_of_less_than_a_byte_are_packed(tmp_path: Path, code: str, bits: int, dtype: str | None) -> None:
    path = write_safetensors(tmp_path / "m", {"a": entry(code, [3, 8], [0, 3 * bits])}, 3 * bits)
    (info,) = read_safetensors_header(path).tensors.values()
    assert (info.size_bytes, info.shape, info.dtype) == (3 * bits, (3, 8), dtype)
    odd = write_safetensors(tmp_path / "odd", {"a": entry(code, [3], [0, 2])}, 2)
    with pytest.raises(HeaderError, match=r"tensor 'a': 3 elements of .* are no whole number of bytes"):
        read_safetensors_header(odd)


def test_a_file_that_is_only_a_header_says_what_is_missing(tmp_path: Path) -> None:
    header = read_safetensors_header(write_safetensors(tmp_path / "m", GOOD, 0))
    assert (header.data_bytes, header.missing_bytes) == (10, 10)
    header = read_safetensors_header(write_safetensors(tmp_path / "m", GOOD, 7))
    assert (header.data_bytes, header.missing_bytes) == (10, 3)


def test_twenty_gigabytes_are_read_by_their_header(tmp_path: Path) -> None:
    sizes = {f"blocks.{i}.{part}.weight": 2**22 for i in range(600) for part in range(8)}
    path = write_safetensors(tmp_path / "large", header_of(sizes), sum(sizes.values()))
    header = read_safetensors_header(path)
    assert header.data_bytes == sum(sizes.values()) > 20e9
    assert header.missing_bytes == 0


def test_the_order_of_entries_does_not_matter_only_their_offsets_do(tmp_path: Path) -> None:
    backwards = dict(reversed(GOOD.items()))
    assert [*read_safetensors_header(write_safetensors(tmp_path / "m", backwards, 10)).tensors] == ["b", "a"]


def test_an_empty_header_is_well_formed(tmp_path: Path) -> None:
    header = read_safetensors_header(write_safetensors(tmp_path / "m", b"{}      "))
    assert (dict(header.tensors), header.data_bytes) == ({}, 0)


def raw(header: bytes, length: int | None = None) -> bytes:
    """A file of this header, which may lie about its length."""
    return struct.pack("<Q", len(header) if length is None else length) + header


RAW_FAULTS = {
    "nothing": (b"", r"has 0 bytes, too few for the length of a header"),
    "a few bytes": (b"\x01\x02\x03", r"at byte 0: the file has 3 bytes, too few"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), r"a header of \d+ bytes, above the limit of 100000000"),
    "a pickle": (b"PK\x03\x04" + bytes(104), r"this is a PyTorch or zip file"),
    "cut off in the header": (raw(b'{"a":', 500), r"at byte 8: the header is 500 bytes long, but only 5 follow"),
    "no header": (raw(b"", 2), r"the header is 2 bytes long, but only 0 follow"),
    "an empty header": (raw(b""), r"at byte 8: the header is not valid JSON"),
    "a list": (raw(b"[]"), r"at byte 8: the header is no JSON object; this is no safetensors file"),
    "no JSON": (raw(b'{"a": 1,'), r"at byte 1\d: the header is not valid JSON"),
    "no UTF-8": (raw(b'{"\xff":1}'), r"not valid JSON \(.*utf-8"),
    "JSON of great depth": (raw(b'{"a":' + b"[" * 200000), r"not valid JSON"),
    "a number of great length": (raw(b'{"a":' + b"1" * 9000 + b"}"), r"not valid JSON .*digits"),
    "a field twice": (raw(b'{"a":{"dtype":"U8","dtype":"U8"}}'), r"the key 'dtype' occurs twice"),
}


@pytest.mark.parametrize("fault", RAW_FAULTS)
def test_a_file_that_is_not_safetensors_says_so(tmp_path: Path, fault: str) -> None:
    content, message = RAW_FAULTS[fault]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match=message) as caught:
        read_safetensors_header(path)
    assert caught.value.subject == str(path)
    assert caught.value.remedy
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "pt"):
        pass


A = entry("U8", [4], [0, 4])

HEADER_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "an entry that is no object": (
        {"a": 3},
        r"tensor 'a': the entry has no dtype, shape and data_offsets",
    ),
    "a missing field": ({"a": {"dtype": "U8", "shape": [4]}}, r"tensor 'a': the entry has no dtype"),
    "an unknown type": ({"a": entry("Q4_K", [4], [0, 4])}, r"the element type 'Q4_K' is unknown; known are BOOL, U8"),
    "a type that is no text": ({"a": entry(8, [4], [0, 4])}, r"the element type 8 is unknown"),
    "a negative size": ({"a": entry("U8", [-4], [0, 4])}, r"the shape \[-4\] is not a list of sizes of 0 or more"),
    "a size that is no integer": ({"a": entry("U8", [4.0], [0, 4])}, r"the shape \[4\.0\] is not a list"),
    "a size that is true": ({"a": entry("U8", [True], [0, 1])}, r"the shape \[True\] is not a list"),
    "a shape that is no list": ({"a": entry("U8", 4, [0, 4])}, r"the shape 4 is not a list"),
    "an overflowing shape": (
        {"a": entry("F32", [2**40, 2**40], [0, 4])},
        r"tensor 'a': the size of shape .* overflows 64 bits",
    ),
    "an overflowing offset": ({"a": entry("U8", [2**63], [0, 2**63])}, r"overflows 64 bits"),
    "a negative offset": ({"a": entry("U8", [4], [-4, 0])}, r"the data_offsets \[-4, 0\] are not two positions"),
    "three offsets": ({"a": entry("U8", [4], [0, 4, 8])}, r"are not two positions"),
    "an end before the start": ({"a": entry("U8", [0], [4, 0])}, r"takes 0 bytes, the offsets 4 to 0 say -4"),
    "a size that is not the span": ({"a": entry("F32", [4], [0, 4])}, r"F32 of shape \[4\] takes 16 bytes, .* say 4"),
    "an overlap": (
        {"a": A, "b": entry("U8", [4], [2, 6])},
        r"tensor 'b': .* 2 to 6 overlaps the tensor before it, .* ends at 4",
    ),
    "the same span twice": ({"a": A, "b": A}, r"overlaps the tensor before it"),
    "a hole": ({"a": A, "b": entry("U8", [4], [6, 10])}, r"tensor 'b': .* 6 to 10 leaves 2 bytes before it unused"),
    "a hole at the start": ({"a": entry("U8", [4], [1, 5])}, r"leaves 1 bytes before it unused"),
    "metadata that is no text": ({"__metadata__": {"steps": 3}, "a": A}, r"__metadata__ does not map names to strings"),
    "metadata that is a list": ({"__metadata__": ["x"], "a": A}, r"__metadata__ does not map names to strings"),
}


@pytest.mark.parametrize("fault", HEADER_FAULTS)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, fault: str) -> None:
    header, message = HEADER_FAULTS[fault]
    path = write_safetensors(tmp_path / "m.safetensors", header, 12)
    with pytest.raises(HeaderError, match=message) as caught:
        read_safetensors_header(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy
    with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, "pt"):
        pass


@pytest.mark.timeout(20)
def test_a_shape_of_many_huge_sizes_is_refused_at_once(tmp_path: Path) -> None:
    # Multiplied out, these sizes are a number of a million digits for each of the many products before the last.
    path = write_safetensors(tmp_path / "m", {"a": entry("U8", [2**62] * 200_000, [0, 1])})
    with pytest.raises(HeaderError, match=r"tensor 'a': the size of shape \[4611686018427387904, .* overflows 64 bits"):
        read_safetensors_header(path)


@pytest.mark.parametrize("shape", [[2**62, 2**62, 0], [0, 2**62, 2**62], [0]])
def test_a_shape_with_a_zero_holds_nothing_whatever_else_it_says(tmp_path: Path, shape: list[int]) -> None:
    path = write_safetensors(tmp_path / "m", {"a": entry("F32", shape, [0, 0])})
    assert read_safetensors_header(path).tensors["a"].size_bytes == 0


def test_a_tensor_listed_twice_is_refused_as_the_format_demands(tmp_path: Path) -> None:
    one = json.dumps(A).encode()
    path = tmp_path / "m"
    path.write_bytes(raw(b'{"a":' + one + b',"a":' + one + b"}") + bytes(4))
    with pytest.raises(HeaderError, match="the key 'a' occurs twice"):
        read_safetensors_header(path)


def test_what_the_reference_tolerates_is_tolerated(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m", {"__metadata__": None, "a": {**A, "extra": 1}}, 4)
    with safetensors.safe_open(path, "pt") as file:
        assert file.keys() == [*read_safetensors_header(path).tensors]
    padded = tmp_path / "padded"
    padded.write_bytes(raw(b' \n{"a":' + json.dumps(A).encode() + b"}   ") + bytes(4))
    assert [*read_safetensors_header(padded).tensors] == ["a"]


def test_bytes_after_the_last_tensor_are_refused(tmp_path: Path) -> None:
    path = write_safetensors(tmp_path / "m", GOOD, 13)
    with pytest.raises(HeaderError, match=r"the file is 3 bytes longer than its header declares; download") as caught:
        read_safetensors_header(path)
    assert caught.value.offset_bytes == 8 + len(json.dumps(GOOD)) + 10


def test_a_header_above_the_limit_is_refused_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{")
        file.truncate(200_000_000)
    with pytest.raises(HeaderError, match=r"a header of 100000001 bytes, above the limit of 100000000"):
        read_safetensors_header(path)


def test_a_file_that_does_not_exist_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_safetensors_header(tmp_path / "absent.safetensors")


def test_a_header_cannot_be_changed_by_its_reader(tmp_path: Path) -> None:
    header = read_safetensors_header(write_safetensors(tmp_path / "m", GOOD, 10))
    with pytest.raises(TypeError):
        header.tensors["c"] = header.tensors["a"]  # type: ignore[index]


REFERENCE = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@REFERENCE
@given(cut=st.integers(0, 400), position=st.integers(0, 400), value=st.integers(0, 255))
def test_damaged_files_are_refused_as_the_reference_refuses_them(
    tmp_path: Path, cut: int, position: int, value: int
) -> None:
    header = {**header_of({"a": 4, "b": 6, "c": 0}), "__metadata__": {"format": "pt"}}
    data = bytearray(raw(json.dumps(header).encode()) + bytes(10))
    data[position % len(data)] = value
    del data[len(data) - cut % 20 :]
    path = tmp_path / "m"
    path.write_bytes(data)
    try:
        accepted = read_safetensors_header(path).missing_bytes == 0
    except HeaderError:
        accepted = False
    try:
        with safetensors.safe_open(path, "pt"):
            reference = True
    except safetensors.SafetensorError:
        reference = False
    assert accepted == reference
