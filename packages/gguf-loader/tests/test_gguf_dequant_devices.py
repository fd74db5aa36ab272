"""Dequantisation on a device that is not the CPU, simulated: results, and where the working memory lives."""

from __future__ import annotations

import types

import pytest
import torch
from gguf_packing import BLOCK_TYPES, golden, packed, same_bits, tame_blocks
from torch import nn

from gguf_loader import DequantConfig, GgufLinear, ScratchPool, _dequant, dequantize, load_packed, type_by_name


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_weights_on_another_device_are_ggml_s_bit_for_bit(name: str, sim: types.ModuleType) -> None:
    blocks, expected = golden(name, "rand")
    for dtype in (torch.float32, torch.bfloat16):
        found = dequantize(blocks.to("sim:1"), type_by_name(name), expected.shape, dtype=dtype)
        assert found.device == torch.device("sim:1")
        assert same_bits(found.cpu(), expected.to(dtype))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_working_memory_elsewhere_is_nine_bytes_for_each_weight_of_a_chunk(
    name: str, sim: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dequant, "DEVICE_WEIGHTS", 1 << 15)
    kind, pool = type_by_name(name), ScratchPool()
    blocks = tame_blocks(kind, 5 << 14)
    found = dequantize(blocks.to("sim:0"), kind, (5 << 14,), dtype=torch.bfloat16, scratch=pool)
    assert same_bits(found.cpu(), dequantize(blocks, kind, (5 << 14,), dtype=torch.bfloat16))
    assert 2 << 15 <= pool.scratch().size_bytes <= 9 << 15


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
