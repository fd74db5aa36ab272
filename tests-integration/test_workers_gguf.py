"""GGUF weights shared by ray-parallel and read by gguf-loader: plain bytes with notes, and neither knows the other."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch

from gguf_loader import PackedTensor, load_gguf, read_header, type_by_name
from ray_parallel.workers import OpenWeights, SharedWeights, TensorSlot


def write_model(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "flux")
    generator = np.random.default_rng(0)
    for index, kind in enumerate((gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0)):
        weights = generator.standard_normal((8, 64), dtype=np.float32)
        writer.add_tensor(f"blocks.{index}.weight", gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.add_tensor("norm.weight", generator.standard_normal(8, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def share(path: Path) -> SharedWeights:
    """What a host does that has both packages: each tensor as bytes, with what it takes to read them."""
    header = read_header(path)
    slots = [
        TensorSlot(
            name=name,
            dtype="uint8",
            shape=(tensor.size_bytes,),
            size_bytes=tensor.size_bytes,
            offset_bytes=header.data_offset_bytes + tensor.offset_bytes,
            note={"ggml_type": tensor.ggml_type.name, "shape": list(tensor.shape)},
        )
        for name, tensor in header.tensors.items()
    ]
    return SharedWeights.from_file(path, slots=slots, metadata={"general.architecture": "flux"})


def unpack(opened: OpenWeights) -> dict[str, torch.Tensor]:
    """What a worker does."""
    tensors: dict[str, torch.Tensor] = {}
    for slot in opened.layout.slots:
        packed, shape = opened[slot.name], slot.note["shape"]
        if slot.note["ggml_type"] == "F32":
            tensors[slot.name] = packed.view(torch.float32).view(shape)
        else:
            tensors[slot.name] = PackedTensor(packed, type_by_name(slot.note["ggml_type"]), shape)
    return tensors


def test_bytes_with_notes_are_the_tensors_that_the_loader_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(path)
    opened = share(path).open()
    found, expected = unpack(opened), load_gguf(path).state_dict
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        shared = found[name]
        if isinstance(tensor, PackedTensor):
            assert isinstance(shared, PackedTensor)
            assert shared.packed.data_ptr() == opened[name].data_ptr()
            assert torch.equal(shared.dequantize(), tensor.dequantize())
        else:
            assert torch.equal(shared, tensor.float())
