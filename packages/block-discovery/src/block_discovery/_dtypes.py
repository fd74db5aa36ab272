"""Element types: what a safetensors header calls them, how many bits they take, and what torch calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SAFETENSORS_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "U16": 16,
    "I16": 16,
    "U32": 32,
    "I32": 32,
    "U64": 64,
    "I64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
}
"""Bits of one element by its name in a header; every type that safetensors 0.8 knows."""

TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F4": "float4_e2m1fn_x2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}
"""torch's names; the six-bit types have none. torch packs two F4 elements into one, a header counts them singly."""


def torch_name(dtype: torch.dtype | str) -> str | None:
    """The name that torch gives an element type, given by torch's name, safetensors' name or itself."""
    if not isinstance(dtype, str):
        return str(dtype).removeprefix("torch.")
    return TORCH_NAMES.get(dtype) if dtype in SAFETENSORS_BITS else dtype.removeprefix("torch.")


def element_bits(dtype: torch.dtype | str) -> int | None:
    """Bits of one element, or None for an unknown type."""
    if not isinstance(dtype, str):
        return 8 * dtype.itemsize
    if dtype in SAFETENSORS_BITS:
        return SAFETENSORS_BITS[dtype]
    # Only for torch's own names: a header has those of safetensors, and reading it must not take the seconds of this.
    import torch

    named = getattr(torch, dtype.removeprefix("torch."), None)
    return 8 * named.itemsize if isinstance(named, torch.dtype) else None
