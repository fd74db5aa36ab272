"""Weights of every kind for the tests of packed bf16, and how they are compared."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from placement_models import Stack, example_input, stack
from torch import Tensor

EVERY_PATTERN = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
"""All bf16: NaNs with every payload, both infinities, both zeros, all subnormals."""


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two bf16 tensors are the same, NaNs and signs of zeros included."""
    return one.shape == other.shape and torch.equal(one.contiguous().view(torch.int16), other.view(torch.int16))


def normal(*shape: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    """Normally distributed weights."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).bfloat16()


def all_patterns_packable(seed: int = 0) -> Tensor:
    """Every bit pattern, in any order, among so many weights of one size that packing pays."""
    mixed = torch.cat([EVERY_PATTERN, normal(200_001, seed=seed)])
    return mixed[torch.randperm(len(mixed), generator=torch.Generator().manual_seed(seed))]


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """A tensor of any size and distribution, most of them packable, with any bit patterns strewn in."""
    count = draw(st.one_of(st.integers(0, 40), st.integers(1000, 1050), st.integers(0, 9000)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = (torch.randn(count, generator=generator) * 10.0 ** draw(st.integers(-40, 37))).bfloat16()
    strange = draw(st.integers(0, count // draw(st.sampled_from([1, 4, 50]))))
    places = torch.randperm(count, generator=generator)[:strange]
    values[places] = EVERY_PATTERN[torch.randint(0, 65536, (strange,), generator=generator)]
    return values


def bf16_model(blocks: int = 4, width: int = 128, seed: int = 0) -> Stack:
    """A stack in bf16 whose matrices are all worth packing."""
    return stack(blocks, width, seed).bfloat16()


def bf16_input(width: int = 128) -> Tensor:
    """Something to call it with."""
    return example_input(width).bfloat16()
