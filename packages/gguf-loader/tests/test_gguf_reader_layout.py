from __future__ import annotations

import math
import struct
import tracemalloc
from itertools import combinations
from pathlib import Path

import gguf
import gguf_bytes as raw
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gguf_loader import GgufError, GgufFormatError, GgufKeyError, load_gguf, open_gguf, read_header

ONE_FOLDER = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}


def test_the_files_written_by_hand_are_files_to_another_reader(tmp_path: Path) -> None:
    """What the other tests stand on: the gguf package reads the same from them."""
    file = raw.rich()
    deep = next(tensor for tensor in file.tensors if tensor.name == "deep")
    deep.dims = (2, 1, 2, 3)
    path = file.write(tmp_path / "rich.gguf")
    header, theirs = read_header(path), gguf.GGUFReader(path)
    assert [tensor.name for tensor in theirs.tensors] == list(header.tensors)
    for tensor in theirs.tensors:
        info = header.tensors[tensor.name]
        assert header.data_offset_bytes + info.offset_bytes == tensor.data_offset
        assert (info.ggml_type.id, info.size_bytes) == (tensor.tensor_type, tensor.n_bytes)
    for key, value in header.metadata.items():
        field = theirs.get_field(key)
        assert field is not None
        expected = field.contents()
        assert value == expected if isinstance(value, str | int | float) else value.tolist() == expected


@given(
    extents=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 80)), min_size=1, max_size=5),
    room=st.integers(0, 500),
    nudge=st.sampled_from((0, 0, 0, 0, 8, 31)),
)
@example(extents=[(0, 8), (1, 8), (2, 8)], room=96, nudge=0)
@example(extents=[(0, 8), (1, 8), (2, 8)], room=95, nudge=0)
@settings(max_examples=300, **ONE_FOLDER)  # type: ignore[arg-type]
def test_tensors_are_accepted_exactly_where_they_are_aligned_inside_and_apart(
    tmp_path: Path, extents: list[tuple[int, int]], room: int, nudge: int
) -> None:
    """Against a check by every pair; the reader sorts once."""
    spans = [(32 * slot, 4 * weights) for slot, weights in extents]
    spans[0] = (spans[0][0] + nudge, spans[0][1])
    tensors = [
        raw.Tensor(f"t{index}", (size // 4,), raw.F32, b"", offset=offset) for index, (offset, size) in enumerate(spans)
    ]
    head = raw.File(tensors=tensors).bytes()
    path = tmp_path / "layout.gguf"
    path.write_bytes(head + bytes(room))
    aligned = nudge == 0
    inside = all(offset + size <= room for offset, size in spans)
    apart = all(a + size_a <= b or b + size_b <= a for (a, size_a), (b, size_b) in combinations(spans, 2))
    try:
        header = read_header(path)
    except GgufFormatError:
        assert not (aligned and inside and apart)
    else:
        assert aligned and inside and apart
        assert [(info.offset_bytes, info.size_bytes) for info in header.tensors.values()] == spans


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    original=st.lists(st.integers(-1, 4), max_size=6),
    kind=st.sampled_from((raw.I32, raw.U32, raw.I64, raw.U64)),
)
@settings(max_examples=200, **ONE_FOLDER)  # type: ignore[arg-type]
def test_an_original_shape_is_taken_exactly_where_it_holds_the_weights(
    tmp_path: Path, shape: list[int], original: list[int], kind: int
) -> None:
    if kind in (raw.U32, raw.U64):
        original = [abs(dim) for dim in original]
    weights = math.prod(shape)
    payload = raw.pair("comfy.gguf.orig_shape.t", raw.ARRAY, raw.array(kind, original))
    file = raw.File(pairs=[payload], tensors=[raw.Tensor("t", shape, raw.F32, bytes(4 * weights))])
    fits = all(dim > 0 for dim in original) and math.prod(original) == weights
    try:
        header = read_header(file.write(tmp_path / "shape.gguf"))
    except GgufFormatError:
        assert not fits
    else:
        assert fits
        assert header.tensors["t"].shape == tuple(original)


@given(
    names=st.lists(st.sampled_from(("a", "b", "p.a", "p.b", "p.p.a", "pa", "p.")), unique=True, min_size=1),
    prefix=st.sampled_from(("p.", "p", "p.p.", "x.", "", None)),
)
@settings(max_examples=150, **ONE_FOLDER)  # type: ignore[arg-type]
def test_a_prefix_neither_loses_nor_confuses_a_name(tmp_path: Path, names: list[str], prefix: str | None) -> None:
    path = raw.File(tensors=[raw.Tensor(name) for name in names]).write(tmp_path / "prefix.gguf")
    carrying = [name for name in names if prefix and name.startswith(prefix)]
    try:
        checkpoint = load_gguf(path, prefix=prefix)
    except GgufKeyError:
        assert any(name.removeprefix(str(prefix)) in names for name in carrying)
        return
    if carrying:
        assert {f"{prefix}{key}" for key in checkpoint.state_dict} | set(checkpoint.left_out) == set(names)
        assert set(checkpoint.state_dict).isdisjoint(checkpoint.left_out)
    else:
        assert (list(checkpoint.state_dict), checkpoint.left_out) == (names, ())


def test_the_header_of_a_large_vocabulary_is_small(tmp_path: Path) -> None:
    tokens = [f"token {index}" for index in range(100_000)]
    pairs = [raw.pair("tokens", raw.ARRAY, raw.array(raw.STRING, tokens))]
    path = raw.File(pairs=pairs).write(tmp_path / "vocabulary.gguf")
    read_header(path)
    tracemalloc.start()
    try:
        header = read_header(path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10_000
    assert peak < 100_000
    assert header.metadata.array("tokens").strings() == tokens


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts the open files of /proc")
def test_no_file_stays_open_whatever_comes_of_it(tmp_path: Path) -> None:
    good = raw.rich().write(tmp_path / "good.gguf")
    bad = raw.File(tensor_count=7).write(tmp_path / "bad.gguf")
    array = read_header(good).metadata.array(f"many.{raw.U8}")
    before = open_files()
    for _ in range(5):
        read_header(good)
        open_gguf(good).native_tensor("norm")
        array.tolist()
        for reader in (read_header, open_gguf):
            with pytest.raises(GgufError):
                reader(bad)
    assert open_files() == before


def test_a_file_that_went_away_is_an_os_error_and_not_an_empty_array(tmp_path: Path) -> None:
    path = raw.rich().write(tmp_path / "rich.gguf")
    array = read_header(path).metadata.array(f"many.{raw.U8}")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        array.tolist()


@pytest.mark.parametrize("kind", [raw.U8, raw.I8, raw.U16, raw.I16, raw.U32, raw.I32, raw.U64, raw.I64])
def test_integers_of_every_width_keep_their_ends(tmp_path: Path, kind: int) -> None:
    width = struct.calcsize(raw.CODES[kind])
    signed = raw.CODES[kind].islower()
    ends = [-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1] if signed else [0, 2 ** (8 * width) - 1]
    pairs = [raw.pair("ends", raw.ARRAY, raw.array(kind, ends)), raw.pair("top", kind, ends[1])]
    metadata = read_header(raw.File(pairs=pairs).write(tmp_path / "ends.gguf")).metadata
    assert metadata.array("ends").tolist() == ends
    assert metadata.array("ends").numpy().dtype == np.dtype(f"<{'i' if signed else 'u'}{width}")
    assert metadata.integer("top") == ends[1]
