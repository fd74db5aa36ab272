"""Where tensors lie: slots, layouts, and what a safetensors header says."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_examples import every_type, random_bits, same_bits, write_file, write_raw

from ray_parallel.workers import InvalidRequestError, SharedWeights, TensorSlot, WeightsError, WeightsLayout


def slot(name: str = "a", **changes: Any) -> TensorSlot:
    fields: dict[str, Any] = {"dtype": "float32", "shape": (2, 3), "size_bytes": 24} | changes
    return TensorSlot(name=name, **fields)


def test_a_slot_counts_its_bytes() -> None:
    assert slot().size_bytes == 24
    with pytest.raises(WeightsError, match=r"float16 of shape \[2, 3\] takes 12 bytes, not 24; give the shape"):
        slot(dtype="float16")


@pytest.mark.parametrize("changes", [{"part": -1}, {"offset_bytes": -4}, {"shape": (-2, -3)}])
def test_negative_places_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match="negative"):
        slot(**changes)


def test_an_unknown_type_is_refused_with_a_way_out() -> None:
    with pytest.raises(WeightsError, match=r"no element type 'float3'.*describe it as \"uint8\" bytes"):
        slot(dtype="float3")


def test_a_note_is_plain_data() -> None:
    assert slot(note={"ggml_type": "Q4_K", "shape": [2, 256]}).note["ggml_type"] == "Q4_K"
    with pytest.raises(InvalidRequestError, match=r"the note of tensor 'a'\['hook'\] is a builtin_function"):
        slot(note={"hook": print})


def test_a_slot_lies_inside_its_part() -> None:
    with pytest.raises(WeightsError, match="ends at byte 28 of part 0, which has 27 bytes"):
        WeightsLayout(slots=(slot(offset_bytes=4),), part_bytes=(27,))
    with pytest.raises(WeightsError, match="part 1, which does not exist"):
        WeightsLayout(slots=(slot(part=1),), part_bytes=(27,))


def test_names_are_unique() -> None:
    with pytest.raises(WeightsError, match="'a': is described twice"):
        WeightsLayout(slots=(slot(), slot()), part_bytes=(24,))


@given(sizes=st.lists(st.integers(0, 40), max_size=6), tied=st.lists(st.integers(0, 5), max_size=4))
def test_tied_memory_counts_once(sizes: list[int], tied: list[int]) -> None:
    slots = [
        TensorSlot(name=f"own{part}", dtype="uint8", shape=(size,), size_bytes=size, part=part)
        for part, size in enumerate(sizes)
    ]
    again = [
        TensorSlot(name=f"tied{n}", dtype="uint8", shape=(sizes[part],), size_bytes=sizes[part], part=part)
        for n, part in enumerate(tied)
        if part < len(sizes)
    ]
    assert WeightsLayout(slots=(*slots, *again), part_bytes=tuple(sizes)).size_bytes == sum(sizes)


def test_a_header_says_where_tensors_lie(tmp_path: Path) -> None:
    tensors = every_type(rare=False)
    path = write_file(tmp_path / "model.safetensors", tensors, {"note": "kept"})
    layout = SharedWeights.from_file(path).layout
    assert {found.name for found in layout.slots} == set(tensors)
    assert layout.metadata == {"note": "kept"}
    assert layout.part_bytes == (path.stat().st_size,)
    raw = path.read_bytes()
    for found in layout.slots:
        expected = tensors[found.name]
        assert (getattr(torch, found.dtype), found.shape) == (expected.dtype, tuple(expected.shape))
        bytes_there = raw[found.offset_bytes : found.offset_bytes + found.size_bytes]
        assert bytes_there == bytes(expected.reshape(-1).view(torch.uint8).tolist())


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    write_file(tmp_path / "one.safetensors", {"a": torch.ones(3)}, {"of": "both"})
    write_file(tmp_path / "two.safetensors", {"b": torch.zeros(5)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    weights = SharedWeights.from_file(index)
    assert [Path(file.path).name for file in weights.files] == ["one.safetensors", "two.safetensors"]
    assert [(found.name, found.part) for found in weights.layout.slots] == [("a", 0), ("b", 1)]
    opened = weights.open()
    assert torch.equal(opened["a"], torch.ones(3))
    assert torch.equal(opened["b"], torch.zeros(5))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no json", "the index is not valid JSON"),
        ("[" * 100_000, "the index is not valid JSON"),
        ("[]", "there is no weight_map"),
        ("{}", "there is no weight_map"),
        (json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}), "does not lie in the folder"),
        (json.dumps({"weight_map": {"a": ".."}}), "does not lie in the folder"),
        (json.dumps({"weight_map": {"a": ""}}), "does not lie in the folder"),
        (json.dumps({"weight_map": {"a": 3}}), "does not lie in the folder"),
        (json.dumps({"weight_map": {"a": ["one.safetensors"]}}), "does not lie in the folder"),
        (json.dumps({"weight_map": {"a": "one\0.safetensors"}}), "does not lie in the folder"),
        (json.dumps({"weight_map": {}}), "there is no weight_map"),
        (json.dumps({"weight_map": ["one.safetensors"]}), "there is no weight_map"),
        (json.dumps({"weight_map": {"a": "absent.safetensors"}}), "absent.safetensors does not exist"),
    ],
    ids=lambda value: value[:40],
)
def test_a_broken_index_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(WeightsError, match=reason):
        SharedWeights.from_file(index)


@pytest.mark.parametrize("keep", [0, 4, 8, 30, 200])
def test_a_cut_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_file(tmp_path / "model.safetensors", {"a": torch.ones(64)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"(too few|is truncated|are missing).*download"):
        SharedWeights.from_file(path)


def test_an_index_and_its_shards_agree(tmp_path: Path) -> None:
    write_file(tmp_path / "one.safetensors", {"a": torch.ones(3)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(WeightsError, match=r"'b': the index lists it in one\.safetensors, which does not hold it"):
        SharedWeights.from_file(index)


@given(place=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_damaged_header_is_read_as_what_it_says_or_refused(place: int, byte: int) -> None:
    """Whatever byte is wrong: no other error, and never a tensor outside of the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_file(Path(folder) / "model.safetensors", {"a": torch.ones(3, 4), "b": torch.ones(5)}, {"k": "v"})
        raw = bytearray(path.read_bytes())
        raw[place % len(raw)] = byte
        path.write_bytes(raw)
        try:
            opened = SharedWeights.from_file(path).open()
        except (WeightsError, OSError):
            return
        assert all(tensor.sum().isfinite() or tensor.numel() for tensor in opened.values())
        assert sum(tensor.nbytes for tensor in opened.values()) <= len(raw)


@given(
    shapes=st.dictionaries(
        st.text("abc.", min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=5
    ),
    dtype=st.sampled_from(["float32", "bfloat16", "float8_e4m3fn", "int64", "bool"]),
)
def test_what_is_written_is_what_is_read(shapes: dict[str, list[int]], dtype: str) -> None:
    tensors = {name: random_bits(dtype, tuple(shape), seed) for seed, (name, shape) in enumerate(shapes.items())}
    with tempfile.TemporaryDirectory() as folder:
        opened = SharedWeights.from_file(write_file(Path(folder) / "model.safetensors", tensors)).open()
        assert set(opened) == set(tensors)
        assert all(same_bits(opened[name], tensors[name]) for name in tensors)
        assert opened.layout.size_bytes == sum(tensor.nbytes for tensor in tensors.values())


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        SharedWeights.from_file(tmp_path / "nowhere.safetensors")


def test_packed_four_bit_elements_count_as_torch_counts_them(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F4", "shape": [2, 8], "data_offsets": [0, 8]}}
    path = write_raw(tmp_path / "packed.safetensors", header, bytes(range(8)))
    opened = SharedWeights.from_file(path).open()
    assert (opened["a"].dtype, opened["a"].shape) == (torch.float4_e2m1fn_x2, (2, 4))
    assert opened["a"].view(torch.uint8).flatten().tolist() == [*range(8)]


def test_a_type_without_a_torch_type_is_refused(tmp_path: Path) -> None:
    header = {"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}
    path = write_raw(tmp_path / "six.safetensors", header, bytes(3))
    with pytest.raises(WeightsError, match="has the type F6_E2M3, which torch does not have"):
        SharedWeights.from_file(path)
