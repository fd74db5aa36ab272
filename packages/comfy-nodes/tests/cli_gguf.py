"""Writes GGUF files for tests, with the gguf package as the reference, and their safetensors twins."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file


def write_gguf(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    type_name: str = "Q8_0",
    *,
    architecture: str = "flux",
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write tensors, the matrices named ``*.weight`` whose rows are whole blocks as `type_name`, the others as F32."""
    kind = gguf.GGMLQuantizationType[type_name]
    block_size, _ = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata or {}).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    for name, tensor in tensors.items():
        array = tensor.detach().to(torch.float32).contiguous().numpy()
        if name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] % block_size == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_hollow_gguf(path: Path, shapes: Mapping[str, tuple[int, ...]], type_of: Callable[[str], str]) -> Path:
    """Write the header of a GGUF file of any size, with a hole where its tensors are: zeros that take no space."""
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_name("A model")
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType[type_of(name)]
        block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
        size_bytes = math.prod(shape) // block_size * type_size
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    data_bytes = sum(-(-tensor.nbytes // 32) * 32 for tensor in writer.tensors[0].values())
    writer.close()
    with path.open("r+b") as file:
        file.truncate(-(-path.stat().st_size // 32) * 32 + data_bytes)
    return path


def write_twins(folder: Path, tensors: Mapping[str, torch.Tensor], type_name: str = "Q8_0") -> tuple[Path, Path]:
    """The same tensors as safetensors and, quantised, as GGUF."""
    plain = folder / "model.safetensors"
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, plain)
    return plain, write_gguf(folder / "model.gguf", tensors, type_name)
