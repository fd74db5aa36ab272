"""From a file to a model that runs: packed weights stay in the file's pages, and nobody writes to them."""

from __future__ import annotations

import mmap
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_packing import report_packed, tame_blocks
from torch import Tensor, nn

from gguf_loader import (
    DequantConfig,
    GgufEmbedding,
    GgufLinear,
    LowRank,
    PackedTensor,
    add_lora,
    load_gguf,
    load_packed,
    type_by_name,
)

QUANTIZED = {
    "embed.weight": ("Q6_K", (64, 256)),
    "block.to_q.weight": ("Q4_K", (256, 256)),
    "block.to_k.weight": ("Q5_K", (256, 256)),
    "block.to_v.weight": ("IQ4_XS", (256, 256)),
    "block.gate.weight": ("Q8_0", (256, 256)),
    "head.weight": ("Q4_0", (32, 256)),
}


class Block(nn.Module):
    """Attention with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(256)
        self.to_q, self.to_k, self.to_v = (nn.Linear(256, 256, bias=False) for _ in range(3))
        self.gate = nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k = (nn.functional.normalize(project(y), dim=-1) for project in (self.to_q, self.to_k))
        mixed = nn.functional.scaled_dot_product_attention(q, k, self.to_v(y))
        return x + torch.sigmoid(self.gate(y)) * mixed


class Model(nn.Module):
    """A very small language model, frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Embedding(64, 256), Block(), nn.Linear(256, 32, bias=False)
        self.requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.block(self.embed(tokens)))
        return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file written by the `gguf` package."""
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "tiny")
    for seed, (name, (type_name, shape)) in enumerate(QUANTIZED.items()):
        kind: Any = gguf.GGMLQuantizationType[type_name]
        blocks = tame_blocks(type_by_name(type_name), shape[0] * shape[1], seed).view(shape[0], -1)
        writer.add_tensor(name, blocks.numpy(), raw_dtype=kind)
    for name, value in (("block.norm.weight", 1.0), ("block.norm.bias", 0.1), ("block.gate.bias", -0.2)):
        writer.add_tensor(name, torch.full((256,), value).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


TOKENS = torch.arange(24).view(2, 12)


def dense(path: Path) -> Model:
    """The same model with dequantised weights."""
    model = Model()
    model.load_state_dict(load_gguf(path).state_dict)
    return model


def packed(path: Path, config: DequantConfig | None = None) -> Model:
    with torch.device("meta"):
        model = Model()
    load_packed(model, load_gguf(path).state_dict, config=config)
    return model


def test_the_packed_model_computes_what_the_dense_one_computes(path: Path) -> None:
    model = packed(path)
    assert isinstance(model.embed, GgufEmbedding)
    assert isinstance(model.block.to_q, GgufLinear)
    expected = dense(path)(TOKENS)
    assert torch.allclose(model(TOKENS), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_all_packed_bytes_are_those_of_the_file(path: Path) -> None:
    model = packed(path)
    held = sum(p.nbytes for p in model.parameters() if isinstance(p, PackedTensor))
    assert held == sum(type_by_name(kind).size_bytes(rows * columns) for kind, (rows, columns) in QUANTIZED.values())


def mapped_kib(path: Path, field: str) -> int:
    """A field of /proc/self/smaps, over all mappings of the file."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()
        if not head[0].endswith(":"):
            inside = line.endswith(str(path))
        elif inside and head[0] == f"{field}:":
            total += int(head[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_running_the_model_writes_to_no_page_of_the_file(path: Path) -> None:
    model = packed(path)
    model(TOKENS)
    model.to(torch.bfloat16)
    model(TOKENS)
    assert mapped_kib(path, "Rss") > 0
    assert mapped_kib(path, "Anonymous") == 0
    assert isinstance(model.head, GgufLinear)
    model.head.packed_weight.packed[0] = 1
    assert mapped_kib(path, "Anonymous") == mmap.PAGESIZE // 1024


def test_edits_of_a_taken_over_tensor_never_reach_the_file(path: Path) -> None:
    before = path.read_bytes()
    model = packed(path)
    with torch.no_grad():
        model.block.norm.weight.zero_()
        model.head.weight.copy_(packed(path).head.weight)
    del model
    assert path.read_bytes() == before


def test_a_run_in_bfloat16_differs_by_its_rounding_alone(path: Path) -> None:
    exact = dense(path)(TOKENS)
    rounded = packed(path).to(torch.bfloat16)(TOKENS)
    in_float32 = packed(path, DequantConfig(dequant_dtype=torch.float32)).to(torch.bfloat16)(TOKENS)
    scale = float(exact.abs().max())
    assert float((rounded.float() - exact).abs().max()) < 0.1 * scale
    assert float((in_float32.float() - exact).abs().max()) < 0.1 * scale


def test_adapters_survive_a_state_dict_round_trip_of_the_weights(path: Path) -> None:
    model = packed(path)
    add_lora(model, "style", {"block.to_q": LowRank(down=torch.ones(2, 256) / 256, up=torch.ones(256, 2))})
    expected = model(TOKENS)
    model.load_state_dict(packed(path).state_dict())
    assert torch.equal(model(TOKENS), expected)


def test_another_process_receives_a_packed_tensor_in_shared_memory(path: Path) -> None:
    import torch.multiprocessing  # teaches pickling between processes to share tensors

    weight = load_gguf(path).state_dict["block.to_q.weight"].clone()
    assert isinstance(weight, PackedTensor)
    weight.share_memory_()
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=report_packed, args=(weight, there))
    child.start()
    try:
        assert here.poll(120)
        assert here.recv() == ("PackedTensor", True, float(weight.dequantize(torch.float32).sum()))
        here.send("done")
    finally:
        child.join(60)
    assert child.exitcode == 0
