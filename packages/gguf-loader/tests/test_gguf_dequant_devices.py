"""Dequantisation on a device that is not the CPU, simulated: results, and where the working memory lives."""

from __future__ import annotations

import types

import pytest
import torch
from gguf_packing import BLOCK_TYPES, golden, packed, same_bits, tame_blocks
from torch import nn

from gguf_loader import DequantConfig, GgufLinear, ScratchPool, dequantize, load_packed, type_by_name
from gguf_loader._scratch import Scratch
from gguf_loader.dequant.eager._lanes import Lanes, unsigned


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_weights_on_another_device_are_ggml_s_bit_for_bit(name: str, sim: types.ModuleType) -> None:
    blocks, expected = golden(name, "rand")
    for dtype in (torch.float32, torch.bfloat16):
        found = dequantize(blocks.to("sim:1"), type_by_name(name), expected.shape, dtype=dtype)
        assert found.device == torch.device("sim:1")
        assert same_bits(found.cpu(), expected.to(dtype))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_elsewhere_a_chunk_takes_no_more_than_five_bytes_a_weight(
    name: str, sim: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where doctests are collected as well, there may be a second module of the name: this is that of the function.
    monkeypatch.setitem(dequantize.__globals__["write_weights"].__globals__, "DEVICE_WEIGHTS", 1 << 15)
    kind, pool, weights = type_by_name(name), ScratchPool(), 5 << 14
    blocks = tame_blocks(kind, weights)
    expected = dequantize(blocks, kind, (weights,), dtype=torch.bfloat16)
    blocks, out = blocks.to("sim:0"), torch.empty(weights, dtype=torch.bfloat16, device="sim:0")
    for _ in range(2):  # the first time brings the tables of the format
        before = sim.mem(0).used
        sim.reset()
        dequantize(blocks, kind, (weights,), dtype=torch.bfloat16, out=out, scratch=pool)
    assert same_bits(out.cpu(), expected)
    assert sim.mem(0).peak - before + pool.scratch().size_bytes <= 5 << 15


@pytest.mark.parametrize("device", ["cpu", "sim:1"])
@pytest.mark.parametrize(("start", "run"), [(0, 8), (2, 16), (4, 8), (8, 16), (16, 32), (1, 8)])
def test_fields_of_bits_are_cut_alike_on_every_device(device: str, start: int, run: int, sim: types.ModuleType) -> None:
    blocks = torch.randint(0, 256, (6, 56), dtype=torch.uint8)
    source = blocks[:, start : start + 32]
    lanes = Lanes(Scratch(), torch.device(device))
    found = unsigned(lanes.fields("q", blocks.to(device)[:, start : start + 32], run, (0, 3, 6), 3)).cpu()
    runs = source.reshape(6, -1, 1, run)
    assert torch.equal(found, torch.cat([(runs >> shift) & 3 for shift in (0, 3, 6)], 2).flatten())


def test_numbers_get_their_signs(sim: types.ModuleType) -> None:
    halves = torch.tensor([[1.5, -0.25], [0.0, 65504.0], [float("inf"), 6e-8]], dtype=torch.float16)
    found = Lanes(Scratch(), torch.device("sim:0")).numbers("d", halves.view(torch.uint8).to("sim:0"), (1, -1))
    assert same_bits(found.cpu(), (halves.float() * torch.tensor([1.0, -1.0])).t().unsqueeze(-1))


def test_a_layer_moves_to_another_device_and_computes_there(sim: types.ModuleType) -> None:
    layer = nn.Linear(256, 64, bias=False, device="meta")
    weight = packed("Q4_K", 64, 256)
    load_packed(layer, {"weight": weight}, config=DequantConfig(tile_weights=16 * 256))
    layer.to("sim:2")
    assert isinstance(layer, GgufLinear)
    assert layer.packed_weight.packed.device == torch.device("sim:2")
    x = torch.randn(3, 256)
    found = layer(x.to("sim:2"))
    assert found.device == torch.device("sim:2")
    assert torch.allclose(found.cpu(), nn.functional.linear(x, weight.dequantize()), rtol=1e-4, atol=1e-3)
