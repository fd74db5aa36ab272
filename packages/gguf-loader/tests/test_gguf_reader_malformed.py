from __future__ import annotations

import re
import struct
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import gguf_bytes as raw
import pytest
from gguf_bytes import File, Tensor, array, pair, string

from gguf_loader import GgufError, GgufFormatError, GgufTypeError, GgufUnsupportedError, open_gguf, read_header

MEMORY_LIMIT_BYTES = 64 << 20
HUGE = (2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1)


@dataclass
class Bad:
    """A malformed file, and what the complaint must say: the field, its offset, and the reason."""

    name: str
    file: File | bytes
    field: str
    offset: int
    reason: str
    error: type[GgufError] = GgufFormatError

    def bytes(self) -> bytes:
        return self.file if isinstance(self.file, bytes) else self.file.bytes()


def metadata_offset(*before: bytes) -> int:
    """Where the next pair starts."""
    return 24 + sum(map(len, before))


def with_pair(payload: bytes) -> File:
    return File(pairs=[payload], tensors=[Tensor()])


def with_tensor(**changes: object) -> File:
    return File(tensors=[Tensor(**changes)])  # type: ignore[arg-type]


def text_pair(length: int) -> bytes:
    return string("k") + struct.pack("<IQ", raw.STRING, length) + b"short"


def alignment(kind: int, content: object) -> File:
    return with_pair(pair("general.alignment", kind, content))


def original_shape(kind: int, contents: list[int]) -> File:
    payload = pair("comfy.gguf.orig_shape.weight", raw.ARRAY, array(kind, contents))
    return File(pairs=[payload], tensors=[Tensor("weight", (4,))])


NAME_AT = 24
DIMS_AT = NAME_AT + 8 + len("weight") + 4
TYPE_AT = DIMS_AT + 8
OFFSET_AT = TYPE_AT + 4
VALUE_AT = 24 + 8 + 1 + 4
ALIGNMENT_AT = 24 + 8 + len("general.alignment") + 4
SHAPE_KEY = "metadata 'comfy.gguf.orig_shape.weight'"
SHAPE_AT = 24 + 8 + len("comfy.gguf.orig_shape.weight") + 4
FIRST = pair("k", raw.U8, 1)
SECOND_PART = pair("split.no", raw.U16, 1)

BAD = [
    Bad("empty", b"", "magic", 0, "an empty file, not a GGUF file"),
    Bad("wrong magic", File(magic=b"GUFF"), "magic", 0, "b'GUFF' instead of b'GGUF'"),
    Bad("version 0", File(version=0), "version", 4, "GGUF version 0", GgufUnsupportedError),
    Bad("version 1", File(version=1), "version", 4, "GGUF version 1", GgufUnsupportedError),
    Bad("version 4", File(version=4), "version", 4, "GGUF version 4", GgufUnsupportedError),
    Bad("big-endian", b"GGUF\0\0\0\3" + bytes(64), "version", 4, "a big-endian file", GgufUnsupportedError),
    *(Bad(f"{n} tensors", File(tensor_count=n), "tensor count", 8, f"{n} tensors, where at most") for n in HUGE),
    *(Bad(f"{n} pairs", File(pair_count=n), "metadata count", 16, f"{n} metadata pairs, where") for n in HUGE),
    *(
        Bad(f"key of {n} bytes", with_pair(struct.pack("<Q", n)), "metadata key 0 length", 24, f"{n} bytes")
        for n in HUGE
    ),
    *(
        Bad(f"text of {n} bytes", with_pair(text_pair(n)), "metadata 'k' length", VALUE_AT, f"{n} bytes")
        for n in (17 << 20, *HUGE)
    ),
    *(
        Bad(f"array of {n}", with_pair(pair("k", raw.ARRAY, array(kind, [], count=n))), "metadata 'k' array count",
            VALUE_AT + 4, f"{n} values of")
        for n in HUGE
        for kind in (raw.U8, raw.FLOAT64, raw.STRING)
    ),
    Bad("array of strings that runs out", with_pair(pair("k", raw.ARRAY, array(raw.STRING, ["one"]) + bytes(200))
        .replace(struct.pack("<IQ", raw.STRING, 1), struct.pack("<IQ", raw.STRING, 2))
        .replace(string("one") + bytes(8), string("one") + struct.pack("<Q", 2**64 - 1))),
        "metadata 'k' array", VALUE_AT + 12 + 11, "leads past the end"),
    Bad("array of arrays", with_pair(pair("k", raw.ARRAY, struct.pack("<IQ", raw.ARRAY, 1))),
        "metadata 'k' array type", VALUE_AT, "an array of arrays"),
    Bad("unknown value type", with_pair(string("k") + struct.pack("<I", 13)), "metadata 'k' type", VALUE_AT - 4,
        "unknown value type 13"),
    Bad("unknown array type", with_pair(pair("k", raw.ARRAY, struct.pack("<IQ", 77, 1))), "metadata 'k' array type",
        VALUE_AT, "unknown value type 77"),
    Bad("bool of 2", with_pair(string("k") + struct.pack("<IB", raw.BOOL, 2)), "metadata 'k'", VALUE_AT,
        "neither 0 nor 1"),
    Bad("key that is not UTF-8", with_pair(pair(b"ab\xff", raw.U8, 1)), "metadata key 0", 24 + 8 + 2, "not UTF-8"),
    Bad("text that is not UTF-8", with_pair(pair("k", raw.STRING, b"\xc3(")), "metadata 'k'", VALUE_AT + 8,
        "not UTF-8"),
    Bad("key twice", File(pairs=[FIRST, FIRST], tensors=[Tensor()]), "metadata key 1", metadata_offset(FIRST),
        "'k' appears twice"),
    Bad("alignment 0", alignment(raw.U32, 0), "general.alignment", ALIGNMENT_AT, "0 is no power of two from 8"),
    Bad("alignment 3", alignment(raw.U32, 3), "general.alignment", ALIGNMENT_AT, "3 is no power of two from 8"),
    Bad("alignment 4", alignment(raw.U32, 4), "general.alignment", ALIGNMENT_AT, "4 is no power of two from 8"),
    Bad("alignment 2^31", alignment(raw.U32, 2**31), "general.alignment", ALIGNMENT_AT, "2147483648 is no power"),
    Bad("alignment as text", alignment(raw.STRING, "32"), "general.alignment", ALIGNMENT_AT, "STRING instead of"),
    Bad("alignment as U64", alignment(raw.U64, 32), "general.alignment", ALIGNMENT_AT, "UINT64 instead of UINT32"),
    Bad("part of a split", File(pairs=[SECOND_PART, pair("split.count", raw.U16, 3)]), "split.count",
        metadata_offset(SECOND_PART) + 8 + len("split.count") + 4, "part 2 of 3", GgufUnsupportedError),
    Bad("name of 256 bytes", with_tensor(name="n" * 256), "tensor 0 name length", NAME_AT,
        "256 bytes, where at most 255"),
    Bad("name that is not UTF-8", with_tensor(name=b"\xff"), "tensor 0 name", NAME_AT + 8, "not UTF-8"),
    Bad("tensor twice", File(tensors=[Tensor("a"), Tensor("a")]), "tensor 1 name",
        NAME_AT + 8 + 1 + 4 + 8 + 12, "'a' appears twice"),
    *(
        Bad(f"{n} dimensions", with_tensor(n_dims=n), "tensor 'weight' n_dims", DIMS_AT - 4, f"{n} dimensions, not")
        for n in (9, 2**31, 2**32 - 1)
    ),
    Bad("dim 0", with_tensor(dims=(4, 0)), "tensor 'weight' dims", DIMS_AT, "gives 0 weights"),
    Bad("dim -1", with_tensor(dims=(-1,)), "tensor 'weight' dims", DIMS_AT, "gives 18446744073709551615 weights"),
    Bad("dims -1 x -1", with_tensor(dims=(-1, -1)), "tensor 'weight' dims", DIMS_AT, "weights, not 1 to 2^63 - 1"),
    Bad("product wraps to 4", with_tensor(dims=(2**33, 2**33, 4)), "tensor 'weight' dims", DIMS_AT, "weights, not 1"),
    Bad("product wraps to 0", with_tensor(dims=(2**32, 2**32)), "tensor 'weight' dims", DIMS_AT, "weights, not 1"),
    Bad("row of half a block", with_tensor(dims=(16, 2), kind=raw.Q8_0), "tensor 'weight' dims", DIMS_AT,
        "rows of 16 are no multiple of the Q8_0 block of 32"),
    Bad("a block without a row", with_tensor(dims=(), kind=raw.Q8_0), "tensor 'weight' dims", DIMS_AT, "rows of 1"),
    Bad("unknown type", with_tensor(kind=99), "tensor 'weight' type", TYPE_AT, "unknown ggml type 99", GgufTypeError),
    Bad("removed type", with_tensor(kind=4), "tensor 'weight' type", TYPE_AT, r"4 (Q4_2) was removed", GgufTypeError),
    Bad("type -1", with_tensor(kind=2**32 - 1), "tensor 'weight' type", TYPE_AT, "unknown ggml type", GgufTypeError),
    Bad("offset past the end", with_tensor(offset=32), "tensor 'weight' offset", OFFSET_AT, "16 bytes from byte 96"),
    Bad("offset that wraps 2^64", with_tensor(offset=2**64 - 64), "tensor 'weight' offset", OFFSET_AT, "do not end"),
    Bad("unaligned offset", with_tensor(offset=8, data=bytes(64)), "tensor 'weight' offset", OFFSET_AT,
        "8 is no multiple of the alignment 32"),
    Bad("tensors that overlap", File(tensors=[Tensor("a", (16,), data=bytes(64)), Tensor("b", offset=32)]),
        "tensor 'b' offset", NAME_AT + 2 * (8 + 1 + 4 + 8 + 4) + 8, "32 lies inside tensor 'a', which ends at 64"),
    Bad("size past the end", with_tensor(dims=(2**40,)), "tensor 'weight' offset", OFFSET_AT, "do not end within"),
    Bad("original shape of text", with_pair(pair("comfy.gguf.orig_shape.weight", raw.STRING, "4")), SHAPE_KEY, SHAPE_AT,
        "not an array of integers"),
    Bad("original shape of floats", original_shape(raw.FLOAT32, [2, 2]), SHAPE_KEY, SHAPE_AT + 12, "array of FLOAT32"),
    Bad("original shape too small", original_shape(raw.I32, [3, 1]), SHAPE_KEY, SHAPE_AT + 12, "does not hold the 4"),
    Bad("original shape of 0", original_shape(raw.I32, [4, 0]), SHAPE_KEY, SHAPE_AT + 12, "does not hold the 4"),
    Bad("original shape of -2 x -2", original_shape(raw.I32, [-2, -2]), SHAPE_KEY, SHAPE_AT + 12, "does not hold"),
    Bad("original shape of 9", original_shape(raw.I32, [4] + 8 * [1]), SHAPE_KEY, SHAPE_AT + 12, "9 dimensions, not"),
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_complaint_names_the_file_the_field_the_offset_and_the_reason(tmp_path: Path, bad: Bad) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(bad.bytes())
    with pytest.raises(bad.error, match=re.escape(bad.reason)) as caught:
        read_header(path)
    assert (caught.value.field, caught.value.offset_bytes) == (bad.field, bad.offset)
    assert caught.value.path == str(path)
    assert str(caught.value).startswith(f"{path}: {bad.field} at byte {bad.offset}: ")
    assert caught.value.remedy


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_the_mapped_reader_refuses_what_the_header_reader_refuses(tmp_path: Path, bad: Bad) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(bad.bytes())
    with pytest.raises(bad.error, match=re.escape(bad.reason)):
        open_gguf(path)


def test_no_malformed_file_takes_more_memory_than_a_header(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    tracemalloc.start()
    try:
        for bad in BAD:
            path.write_bytes(bad.bytes())
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with pytest.raises(GgufError):
                read_header(path)
            assert tracemalloc.get_traced_memory()[1] - before < MEMORY_LIMIT_BYTES, bad.name
    finally:
        tracemalloc.stop()


def test_truncation_at_every_byte_is_an_error_until_the_last_weight_is_there(tmp_path: Path) -> None:
    whole = raw.rich().bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole)
    header = read_header(path)
    last = max(tensor.offset_bytes + tensor.size_bytes for tensor in header.tensors.values())
    complete = header.data_offset_bytes + last
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length >= complete:
            assert read_header(path).sizes() == header.sizes()
            continue
        with pytest.raises(GgufFormatError) as caught:
            read_header(path)
        assert caught.value.field
        assert caught.value.offset_bytes is not None
        assert caught.value.offset_bytes <= length


def test_a_split_of_one_part_is_a_whole_file(tmp_path: Path) -> None:
    file = File(pairs=[pair("split.count", raw.U16, 1)], tensors=[Tensor()])
    assert list(read_header(file.write(tmp_path / "one.gguf")).tensors) == ["weight"]


def test_an_original_shape_without_its_tensor_is_accepted(tmp_path: Path) -> None:
    file = File(pairs=[pair("comfy.gguf.orig_shape.gone", raw.ARRAY, array(raw.I32, [7]))], tensors=[Tensor()])
    assert read_header(file.write(tmp_path / "orphan.gguf")).tensors["weight"].shape == (4,)


def test_an_original_shape_may_have_as_many_dimensions_as_a_tensor(tmp_path: Path) -> None:
    dims = [2, 1, 1, 2, 1, 1, 1, 1]
    file = File(pairs=[pair("comfy.gguf.orig_shape.weight", raw.ARRAY, array(raw.I32, dims))], tensors=[Tensor()])
    assert read_header(file.write(tmp_path / "eight.gguf")).tensors["weight"].shape == tuple(dims)


def test_values_inside_arrays_are_judged_when_they_are_read(tmp_path: Path) -> None:
    pairs = [
        pair("strings", raw.ARRAY, array(raw.STRING, ["good", b"bad\xff"])),
        pair("bools", raw.ARRAY, struct.pack("<IQ3B", raw.BOOL, 3, 0, 1, 2)),
    ]
    metadata = read_header(File(pairs=pairs).write(tmp_path / "arrays.gguf")).metadata
    assert metadata.array("strings").raw_strings() == [b"good", b"bad\xff"]
    with pytest.raises(GgufFormatError, match=r"metadata 'strings'\[1\].*not UTF-8"):
        metadata.array("strings").strings()
    with pytest.raises(GgufFormatError, match=r"metadata 'bools'.*neither 0 nor 1"):
        metadata.array("bools").numpy()


@pytest.mark.parametrize("left", [0, 7, 39])
def test_a_text_that_is_cut_off_is_told_how_much_of_it_is_there(tmp_path: Path, left: int) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(File(pairs=[pair("k", raw.STRING, "x" * 40)]).bytes()[: VALUE_AT + 8 + left])
    with pytest.raises(GgufFormatError, match=f"40 bytes, but the file has only {left} left"):
        read_header(path)


def test_a_missing_file_is_an_ordinary_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.gguf")
    with pytest.raises(FileNotFoundError):
        open_gguf(tmp_path / "none.gguf")
