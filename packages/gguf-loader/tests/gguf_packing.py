"""What tests of packed weights share: golden vectors, random blocks, and what "the same" means."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gguf_loader._types import GgmlType, type_by_name
from gguf_loader.packed._tensor import PackedTensor

GOLDEN = Path(__file__).with_name("data") / "ggml_dequant_golden.npz"

BLOCK_TYPES = (
    *("Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
)
"""Every type whose weights share a block and have a conversion to float32 in ggml."""

NOT_IN_GGUF_PY = ("Q1_0", "Q2_0")
"""Types that `gguf.quants` does not dequantise; the golden vectors have them."""


@cache
def golden(name: str, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks of a type and the float32 weights that ggml's C code makes of them."""
    with np.load(GOLDEN) as vectors:
        return torch.from_numpy(vectors[f"{name}.{kind}.blocks"]), torch.from_numpy(vectors[f"{name}.{kind}.f32"])


def random_blocks(kind: GgmlType, weights: int, seed: int = 0) -> torch.Tensor:
    """Any bytes at all: every pattern of bits is a block of every type."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (kind.size_bytes(weights),), dtype=torch.uint8, generator=generator)


def tame_blocks(kind: GgmlType, weights: int, seed: int = 0) -> torch.Tensor:
    """Random bytes without infinite or huge scales, for tests that multiply with the weights."""
    blocks = random_blocks(kind, weights, seed)
    rows = blocks.view(-1, kind.type_size)
    two = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q4_K": (0, 2), "Q5_K": (0, 2)}
    one = {"Q3_K": (108,), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,), "MXFP4": (), "NVFP4": (), "IQ1_M": ()}
    for at in {**two, **one}.get(kind.name, (0,)):
        # The exponent of a float16 lies in bits 2-6 of its second byte: 1/64 to 1/32.
        rows[:, at + 1] = (rows[:, at + 1] & 0x83) | 0x24
    if kind.name == "MXFP4":
        rows[:, 0] = (rows[:, 0] & 7) + 120
    if kind.name == "IQ1_M":
        # Its float16 is spread over the top four bits of four int16.
        rows[:, 53] = (rows[:, 53] & 0x3F) | 0x40
        rows[:, 55] = (rows[:, 55] & 0x8F) | 0x20
    return blocks


def packed(name: str, *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> PackedTensor:
    """A packed tensor of tame random weights."""
    kind = type_by_name(name)
    return PackedTensor(tame_blocks(kind, int(np.prod(shape)), seed), kind, shape, dtype=dtype)


def gguf_py(kind: GgmlType, blocks: torch.Tensor) -> torch.Tensor:
    """The float32 weights according to the `gguf` package."""
    import gguf

    number: Any = gguf.GGMLQuantizationType[kind.name]
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(blocks.numpy(), number))


def same_bits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two floating tensors are equal bit for bit, any NaN being equal to any other."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    lanes = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.dtype.itemsize]
    equal = (found.contiguous().view(lanes) == expected.contiguous().view(lanes)) | (found.isnan() & expected.isnan())
    return bool(equal.all())


def report_packed(weight: PackedTensor, pipe: Any) -> None:
    """In another process: send what arrived, and stay until it has been seen."""
    pipe.send((type(weight).__name__, weight.is_shared(), float(weight.dequantize(torch.float32).sum())))
    pipe.recv()
