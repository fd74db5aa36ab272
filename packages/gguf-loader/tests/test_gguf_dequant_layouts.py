"""Every block layout against a second statement of it, weight by weight."""

from __future__ import annotations

import struct

import pytest
import torch
from gguf_packing import BLOCK_TYPES, random_blocks, same_bits
from gguf_reference import weight_at
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_loader import dequantize, type_by_name


def by_reference(name: str, blocks: bytes) -> torch.Tensor:
    """The weights of blocks, each rounded to float32 once."""
    kind, read = type_by_name(name), weight_at(name)
    weights = [
        read(blocks[start : start + kind.type_size], place)
        for start in range(0, len(blocks), kind.type_size)
        for place in range(kind.block_size)
    ]
    return torch.tensor(weights, dtype=torch.float64).float()


def found(name: str, blocks: bytes) -> torch.Tensor:
    kind = type_by_name(name)
    data = torch.frombuffer(bytearray(blocks), dtype=torch.uint8)
    return dequantize(data, kind, (len(blocks) // kind.type_size * kind.block_size,))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_random_blocks_read_as_the_format_says(name: str) -> None:
    blocks = random_blocks(type_by_name(name), 7 * type_by_name(name).block_size, seed=21).numpy().tobytes()
    assert same_bits(found(name, blocks), by_reference(name, blocks))


@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x7F, 0x80, 0x55, 0xAA])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_uniform_blocks_read_as_the_format_says(name: str, fill: int) -> None:
    blocks = bytes([fill]) * (2 * type_by_name(name).type_size)
    assert same_bits(found(name, blocks), by_reference(name, blocks))


@given(name=st.sampled_from(BLOCK_TYPES), data=st.data())
@settings(max_examples=100, deadline=None)
def test_one_byte_changes_the_weights_that_the_format_says(name: str, data: st.DataObject) -> None:
    size = type_by_name(name).type_size
    block = bytearray(random_blocks(type_by_name(name), type_by_name(name).block_size, seed=2).numpy().tobytes())
    block[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    assert same_bits(found(name, bytes(block)), by_reference(name, bytes(block)))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_block_does_not_depend_on_its_neighbours(name: str) -> None:
    kind = type_by_name(name)
    blocks = random_blocks(kind, 5 * kind.block_size, seed=5)
    before = dequantize(blocks, kind, (5, kind.block_size))
    for other in (0, 1, 3, 4):
        blocks.view(5, -1)[other] ^= 0xA5
    after = dequantize(blocks, kind, (5, kind.block_size))
    assert same_bits(after[2], before[2])


@pytest.mark.parametrize(
    ("name", "scale_at"), [("Q4_0", 0), ("Q8_0", 0), ("Q6_K", 208), ("IQ4_XS", 0), ("TQ1_0", 52), ("TQ2_0", 64)]
)
def test_a_doubled_scale_doubles_every_weight(name: str, scale_at: int) -> None:
    kind = type_by_name(name)
    block = bytearray(random_blocks(kind, kind.block_size, seed=9).numpy().tobytes())
    weights = []
    for scale in (0.125, 0.25):
        block[scale_at : scale_at + 2] = struct.pack("<e", scale)
        weights.append(found(name, bytes(block)))
    assert same_bits(weights[1], weights[0] * 2)
    assert weights[0].any()


@pytest.mark.parametrize(
    ("name", "scale_at", "expected"),
    [
        ("Q4_0", 0, set(range(-8, 8))),
        ("Q8_0", 0, set(range(-128, 128))),
        ("IQ4_NL", 0, {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}),
        ("Q1_0", 0, {-1, 1}),
        ("Q2_0", 0, {-1, 0, 1, 2}),
        ("TQ1_0", 52, {-1, 0, 1}),
        ("TQ2_0", 64, {-1, 0, 1, 2}),
    ],
)
def test_at_scale_one_the_weights_are_the_codes_of_the_type(name: str, scale_at: int, expected: set[int]) -> None:
    kind = type_by_name(name)
    blocks = random_blocks(kind, 400 * kind.block_size, seed=1).view(400, -1)
    blocks[:, scale_at : scale_at + 2] = torch.tensor([0x00, 0x3C], dtype=torch.uint8)
    weights = dequantize(blocks.view(-1), kind, (400 * kind.block_size,))
    assert set(weights.unique().tolist()) == expected  # type: ignore[no-untyped-call]
