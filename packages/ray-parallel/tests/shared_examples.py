"""Tensors of every element type, and files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

FLOATS = (
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
WHOLES = ("uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", "bool", "complex64")
# Rarer types, which older releases of safetensors do not write.
RARE = ("float8_e8m0fnu",)


def random_bits(dtype: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor of random bits, among them the odd values that arithmetic would lose (a bool has only two values)."""
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel() * kind.itemsize
    data = torch.randint(0, 2 if dtype == "bool" else 256, (count,), dtype=torch.uint8, generator=generator)
    return data.view(kind).reshape(shape)


def every_type(*, rare: bool = True) -> dict[str, torch.Tensor]:
    """One tensor of each type, a scalar, an empty one."""
    names = FLOATS + WHOLES + (RARE if rare else ())
    tensors = {f"layer.{name}": random_bits(name, (6, 4), seed) for seed, name in enumerate(names)}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two tensors agree in type, shape and every bit, NaNs included."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def write_file(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a safetensors file with the library."""
    save_file(dict(tensors), path, metadata)
    return path


def write_raw(path: Path, header: Mapping[str, object], data: bytes) -> Path:
    """Write a safetensors file by hand: a header without padding, so that its data may begin at any byte."""
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path
