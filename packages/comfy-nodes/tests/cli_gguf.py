"""Writes GGUF files for tests, with the gguf package as the reference, and their safetensors twins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
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


def write_twins(folder: Path, tensors: Mapping[str, torch.Tensor], type_name: str = "Q8_0") -> tuple[Path, Path]:
    """The same tensors as safetensors and, quantised, as GGUF."""
    plain = folder / "model.safetensors"
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, plain)
    return plain, write_gguf(folder / "model.gguf", tensors, type_name)
