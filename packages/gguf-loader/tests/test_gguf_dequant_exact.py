"""Dequantised weights are those of ggml, bit for bit, whatever the bytes."""

from __future__ import annotations

import pytest
import torch
from gguf_packing import BLOCK_TYPES, NOT_IN_GGUF_PY, gguf_py, golden, random_blocks, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_loader._types import GGML_TYPES, type_by_name
from gguf_loader.dequant._dequantize import dequantize
from gguf_loader.dequant._weights import CHUNK_WEIGHTS, KERNELS, SCALE_WEIGHTS

CONVERTED = ("BF16", *BLOCK_TYPES)
PEERED = [name for name in BLOCK_TYPES if name not in NOT_IN_GGUF_PY]


def test_every_block_type_of_ggml_with_a_conversion_has_a_kernel() -> None:
    without = {"Q8_1", "Q8_K"}
    assert set(KERNELS) == set(BLOCK_TYPES) == {n for n, kind in GGML_TYPES.items() if kind.is_quantized} - without


@pytest.mark.parametrize("kind", ["real", "rand"])
@pytest.mark.parametrize("name", CONVERTED)
def test_float32_equals_the_golden_vectors(name: str, kind: str) -> None:
    blocks, expected = golden(name, kind)
    assert same_bits(dequantize(blocks, type_by_name(name), expected.shape), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", CONVERTED)
def test_other_dtypes_are_float32_rounded_once(name: str, dtype: torch.dtype) -> None:
    blocks, expected = golden(name, "rand")
    assert same_bits(dequantize(blocks, type_by_name(name), expected.shape, dtype=dtype), expected.to(dtype))


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    blocks, exact = golden("Q4_K", "real")
    rounded = dequantize(blocks, type_by_name("Q4_K"), exact.shape, dtype=torch.bfloat16)
    bits = exact.view(torch.int32)
    by_hand = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    assert torch.equal(rounded.view(torch.int16), by_hand.to(torch.int16))


@pytest.mark.parametrize("name", PEERED)
def test_float32_equals_gguf_py_on_random_blocks(name: str) -> None:
    kind = type_by_name(name)
    weights = kind.block_size * 999
    blocks = random_blocks(kind, weights, seed=7)
    assert same_bits(dequantize(blocks, kind, (weights,)), gguf_py(kind, blocks))


@given(name=st.sampled_from(PEERED), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_mean_the_same_as_to_gguf_py(name: str, data: st.DataObject) -> None:
    kind = type_by_name(name)
    count = data.draw(st.integers(1, 3))
    raw = data.draw(st.binary(min_size=count * kind.type_size, max_size=count * kind.type_size))
    blocks = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    assert same_bits(dequantize(blocks, kind, (count * kind.block_size,)), gguf_py(kind, blocks))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_the_cut_into_chunks_does_not_show(name: str) -> None:
    kind = type_by_name(name)
    weights = SCALE_WEIGHTS + CHUNK_WEIGHTS + 3 * kind.block_size
    blocks = random_blocks(kind, weights, seed=3)
    whole = dequantize(blocks, kind, (weights,))
    for first in (0, CHUNK_WEIGHTS - kind.block_size, SCALE_WEIGHTS - kind.block_size, weights - 3 * kind.block_size):
        data = blocks[kind.size_bytes(first) :][: kind.size_bytes(2 * kind.block_size)]
        assert same_bits(whole[first : first + 2 * kind.block_size], dequantize(data, kind, (2 * kind.block_size,)))


@pytest.mark.parametrize("start", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_blocks_may_start_at_any_byte(name: str, start: int) -> None:
    blocks, expected = golden(name, "rand")
    moved = torch.zeros(start + blocks.numel(), dtype=torch.uint8)
    moved[start:] = blocks
    assert same_bits(dequantize(moved[start:], type_by_name(name), expected.shape), expected)


@pytest.mark.parametrize("start", [1, 2, 4])
def test_plain_numbers_may_start_at_any_byte(start: int) -> None:
    numbers = torch.randn(33)
    moved = torch.zeros(start + numbers.nbytes, dtype=torch.uint8)
    moved[start:] = numbers.view(torch.uint8)
    assert torch.equal(dequantize(moved[start:], type_by_name("F32"), (33,)), numbers)


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"])
def test_plain_numbers_are_converted_as_torch_converts_them(name: str) -> None:
    dtypes = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    integers = {"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}
    numbers = (torch.randn(40) * 50).to({**dtypes, **integers}[name])
    data = numbers.view(torch.uint8)
    for dtype in (numbers.dtype, torch.float32, torch.bfloat16):
        assert torch.equal(dequantize(data, type_by_name(name), (5, 8), dtype=dtype), numbers.to(dtype).view(5, 8))


def test_subnormal_and_infinite_scales_survive() -> None:
    kind = type_by_name("Q8_0")
    for scale in (2.0**-24, -(2.0**-24), float("inf"), float("-inf"), float("nan"), -0.0):
        head = torch.tensor([scale], dtype=torch.float16).view(torch.uint8)
        blocks = torch.cat([head, torch.arange(-16, 16, dtype=torch.int8).view(torch.uint8)])
        assert same_bits(dequantize(blocks, kind, (32,)), torch.arange(-16, 16).float() * scale)
