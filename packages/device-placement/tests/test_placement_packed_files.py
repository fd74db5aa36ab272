"""Packed files: back to the same tensors and metadata bit for bit, damage refused, nothing half-written."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placement_packed import all_patterns_packable, bf16_input, bf16_model, normal, same_bits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from block_discovery import HeaderError, NotRegularFileError
from device_placement.packed import (
    DamagedPackError,
    PackedError,
    PackedFile,
    PackedWeight,
    load_packed,
    pack_file,
    unpack_file,
)

TENSORS: dict[str, Tensor] = {
    "z.weight": normal(160, 128),
    "a.weight": all_patterns_packable().view(1, -1),
    "a.bias": normal(16384 * 2),
    "small": normal(8, 8),
    "noise": torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).view(256, 256),
    "float": torch.randn(200, 100, generator=torch.Generator().manual_seed(0)),
    "fp8": torch.ones(3, 5).to(torch.float8_e4m3fn),
    "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
    "none": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
}
METADATA = {"format": "pt", "title": 'a "quoted" \u00e4 title'}


def same(one: Tensor, other: Tensor) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "m.safetensors", metadata=METADATA)
    return tmp_path / "m.safetensors"


@pytest.fixture
def packed(source: Path) -> Path:
    pack_file(source, source.with_name("m.w3.safetensors"))
    return source.with_name("m.w3.safetensors")


def header_of(file: Path) -> dict[str, Any]:
    raw = file.read_bytes()
    header: dict[str, Any] = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    return header


def test_a_file_comes_back_bit_for_bit(source: Path, packed: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = unpack_file(packed, tmp_path / "back.safetensors", progress=lambda done, of: seen.append((done, of)))
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == TENSORS.keys()
    assert all(same(back[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "back.safetensors", "pt") as file:
        assert file.metadata() == METADATA
    names = [name for name in header_of(source) if name != "__metadata__"]
    assert [name for name in header_of(tmp_path / "back.safetensors") if name != "__metadata__"] == names
    total = sum(tensor.nbytes for tensor in TENSORS.values())
    assert (report.tensors, report.packed, report.target_bytes) == (len(TENSORS), 2, total)
    assert seen[-1] == (total, total)
    assert len(seen) == len(TENSORS)


def test_a_packed_file_is_safetensors_of_fewer_bytes(source: Path, packed: Path) -> None:
    assert packed.stat().st_size < 0.9 * source.stat().st_size
    stored = load_file(packed)
    assert stored.keys() == {n + ".w3" if n in ("z.weight", "a.weight") else n for n in TENSORS}
    assert stored["z.weight.w3"].dtype == torch.uint8
    header = header_of(packed)
    start = 8 + struct.unpack("<Q", packed.read_bytes()[:8])[0]
    assert all((start + header[f"{name}.w3"]["data_offsets"][0]) % 16 == 0 for name in ("z.weight", "a.weight"))


def test_each_tensor_is_read_when_it_is_asked_for(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = PackedFile.read

    def noted(self: PackedFile, name: str) -> bytearray:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(PackedFile, "read", noted)
    with PackedFile(packed) as file:
        assert dict(file.metadata) == METADATA
        assert set(file) == set(TENSORS)
        assert read == []
        weight = file["z.weight"]
        assert isinstance(weight, PackedWeight)
        assert same_bits(weight.dense(), TENSORS["z.weight"])
        assert same(file["float"], TENSORS["float"])
        assert read == ["z.weight.w3", "float"]
        assert all(same(file[name], TENSORS[name]) for name in TENSORS if name not in file.stored)


def test_a_file_without_packed_tensors_is_read_as_well(source: Path) -> None:
    with PackedFile(source) as file:
        assert all(same(file[name], tensor) for name, tensor in TENSORS.items())


def test_a_model_on_the_meta_device_is_loaded_packed(tmp_path: Path) -> None:
    dense = bf16_model()
    state = {f"model.{name}": value for name, value in dense.state_dict().items()}
    save_file(state, tmp_path / "m.safetensors")
    pack_file(tmp_path / "m.safetensors", tmp_path / "p.safetensors")
    with torch.device("meta"):
        model = bf16_model()
    load_packed(model, tmp_path / "p.safetensors", prefix="model.")
    assert {name for name, p in model.named_parameters() if isinstance(p, PackedWeight)} == {
        name for name, p in dense.named_parameters() if p.ndim == 2
    }
    with torch.no_grad():
        assert torch.equal(model(bf16_input()), dense(bf16_input()))
    saved = model.state_dict()
    assert all(same_bits(saved[name], value) for name, value in dense.state_dict().items())
    with pytest.raises(PackedError, match="no tensors under 'other'"):
        load_packed(model, tmp_path / "p.safetensors", prefix="other")


def test_a_table_is_loaded_dense(tmp_path: Path) -> None:
    table = nn.Embedding(256, 128, dtype=torch.bfloat16)
    save_file(dict(table.state_dict()), tmp_path / "m.safetensors")
    assert pack_file(tmp_path / "m.safetensors", tmp_path / "p.safetensors").packed == 1
    loaded = nn.Embedding(256, 128, dtype=torch.bfloat16)
    load_packed(loaded, tmp_path / "p.safetensors")
    assert type(loaded.weight) is nn.Parameter
    assert same_bits(loaded.weight, table.weight)


def test_packing_twice_and_unpacking_a_dense_file_are_refused(source: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(PackedError, match="is packed already; unpack it first"):
        pack_file(packed, tmp_path / "twice")
    with pytest.raises(PackedError, match="is not packed; there is nothing to unpack"):
        unpack_file(source, tmp_path / "dense")
    assert not (tmp_path / "twice").exists()


def test_no_file_is_overwritten(source: Path, packed: Path, tmp_path: Path) -> None:
    for target in (source, packed, tmp_path):
        with pytest.raises(PackedError, match="exists; choose another name, or remove it first"):
            pack_file(source, target)


@pytest.mark.parametrize("what", [pack_file, unpack_file])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_no_file(
    source: Path, packed: Path, what: Callable[..., object], error: type[BaseException]
) -> None:
    before = set(source.parent.iterdir())

    def interrupt(done: int, total: int) -> None:
        raise error

    with pytest.raises(error):
        what(source if what is pack_file else packed, source.with_name("new"), progress=interrupt)
    assert set(source.parent.iterdir()) == before


def test_a_name_that_packing_needs_is_refused(tmp_path: Path) -> None:
    save_file({"a": normal(128, 128), "a.w3": torch.zeros(4)}, tmp_path / "m.safetensors")
    with pytest.raises(PackedError, match=r"tensor 'a\.w3' has the name that 'a' gets"):
        pack_file(tmp_path / "m.safetensors", tmp_path / "p.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(NotRegularFileError):
            PackedFile(path)


Change = Callable[[dict[str, Any], dict[str, Any]], None]
"""Changes the header of a packed file, or what its metadata say."""


def changed(file: Path, change: Change) -> None:
    """Write the header of a file again, changed, in the same place."""
    raw = bytearray(file.read_bytes())
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    packing = json.loads(header["__metadata__"]["torchspan.packed"])
    change(header, packing)
    if "torchspan.packed" in header["__metadata__"]:
        header["__metadata__"]["torchspan.packed"] = json.dumps(packing)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + size :])


def of_tensor(**change: object) -> Change:
    return lambda header, packing: packing["tensors"]["z.weight"].update(change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda h, p: p.update(version=2), "'w3' of version 2, and this release reads 'w3' of version 1; use a later"),
        (lambda h, p: p.update(format="w4"), "packed as 'w4' of version 1"),
        (lambda h, p: p.pop("tensors"), r"metadata 'torchspan.packed' is invalid \(KeyError"),
        (lambda h, p: p.update(tensors=[1]), "is invalid"),
        (of_tensor(shape=5), "is invalid"),
        (of_tensor(shape=["160", 128]), "'160' of a packed tensor is not a whole number"),
        (of_tensor(base=250), "above 249"),
        (of_tensor(escapes=-1), "not a whole number of 0 or more"),
        (of_tensor(escapes=True), "not a whole number of 0 or more"),
        (of_tensor(crc32="0"), "crc32 is not an integer"),
        (of_tensor(shape=[160, 129]), "needs .* bytes of uint8 named 'z.weight.w3', which the file does not have"),
        (lambda h, p: p["tensors"].update(other=p["tensors"]["z.weight"]), "'other' needs"),
        (lambda h, p: h.update({"z.weight": h.pop("small")}), "'z.weight' is there twice"),
    ],
)
def test_contradictions_in_the_header_are_refused(packed: Path, change: Change, reason: str) -> None:
    changed(packed, change)
    with pytest.raises(PackedError, match=reason):
        PackedFile(packed)


def test_deep_metadata_is_refused(packed: Path) -> None:
    def change(header: dict[str, Any], packing: dict[str, Any]) -> None:
        header["__metadata__"]["torchspan.packed"] = "x"

    changed(packed, change)
    raw = packed.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    for text in ("[" * 100_000, '{"format":"w3","version":' + "9" * 5000 + "}"):
        header["__metadata__"]["torchspan.packed"] = text
        new = json.dumps(header).encode()
        packed.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + size :])
        with pytest.raises(DamagedPackError, match="is invalid"):
            PackedFile(packed)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_of_a_packed_tensor_is_found(packed: Path, where: float, flip: int) -> None:
    raw = bytearray(packed.read_bytes())
    first, last = header_of(packed)["a.weight.w3"]["data_offsets"]
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    raw[start + first + int(where * (last - first))] ^= flip
    damaged = packed.with_name("damaged.safetensors")
    damaged.write_bytes(raw)
    with PackedFile(damaged) as file:
        assert same(file["z.weight"].to(torch.bfloat16).clone(), file["z.weight"])
        with pytest.raises(DamagedPackError, match=r"'a\.weight' is damaged .*; copy or pack the file again"):
            _ = file["a.weight"]
    with pytest.raises(DamagedPackError):
        unpack_file(damaged, packed.with_name("never"))
    assert not packed.with_name("never").exists()


def test_a_consistent_checksum_does_not_hide_planes_that_contradict_each_other(packed: Path) -> None:
    with PackedFile(packed) as file:
        stored = file.stored["z.weight"]
        raw = file.read("z.weight.w3")
    where = 384 * stored.layout.blocks + 5
    raw[where] ^= 1
    whole = packed.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0] + header_of(packed)["z.weight.w3"]["data_offsets"][0]
    packed.write_bytes(whole[:start] + raw + whole[start + len(raw) :])
    changed(packed, of_tensor(crc32=zlib.crc32(raw)))
    with (
        PackedFile(packed) as file,
        pytest.raises(DamagedPackError, match=r"'z\.weight': a packed tensor .* is damaged"),
    ):
        _ = file["z.weight"]


@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_file_that_ends_early_is_refused(packed: Path, cut: int) -> None:
    packed.write_bytes(packed.read_bytes()[:cut])
    with pytest.raises((DamagedPackError, HeaderError)):
        PackedFile(packed)


def test_a_file_that_becomes_shorter_while_it_is_open_is_an_error(packed: Path) -> None:
    with PackedFile(packed) as file:
        os.truncate(packed, packed.stat().st_size - 1000)
        with pytest.raises(DamagedPackError, match="became shorter while it was read"):
            for name in file:
                _ = file[name]
