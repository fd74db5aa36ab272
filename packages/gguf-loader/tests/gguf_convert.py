"""Converts tiny transformers models to GGUF as llama.cpp does, with the gguf package's own name tables and writer.

Nothing of gguf_loader is used here: what the tests compare against must not share its tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

Tensors = dict[str, torch.Tensor]
SUFFIXES = (".weight", ".bias")


def gguf_names(tensors: Mapping[str, torch.Tensor], architecture: str, blocks: int) -> Tensors:
    """Checkpoint names to llama.cpp's, by the table of the gguf package."""
    kind = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(kind, blocks)
    renamed = {}
    for name, tensor in tensors.items():
        target = router_name(name) or table.get_name(name, try_suffixes=SUFFIXES)
        assert target is not None, name
        renamed[target] = tensor
    return renamed


def router_name(name: str) -> str | None:
    """The two names that llama.cpp's converter for Gemma 4 does not take from the table."""
    layer = name.split(".")[2] if name.startswith("model.layers.") else ""
    if name.endswith(".router.scale"):
        return f"blk.{layer}.ffn_gate_inp.scale"
    return f"blk.{layer}.ffn_down_exps.scale" if name.endswith(".router.per_expert_scale") else None


def interleave(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The row order of llama.cpp's RoPE: rows i and i + half of a head become neighbours."""
    half = tensor.shape[0] // heads // 2
    rows = [2 * half * head + side * half + row for head in range(heads) for row in range(half) for side in (0, 1)]
    return tensor[rows]


def interleave_heads(tensors: Tensors, heads: int, kv_heads: int) -> Tensors:
    counts = {"q_proj": heads, "k_proj": kv_heads}
    return {
        name: interleave(tensor, counts[name.split(".")[-2]]) if name.split(".")[-2] in counts else tensor
        for name, tensor in tensors.items()
    }


def raise_norms(tensors: Tensors, by: float = 1.0) -> Tensors:
    return {name: tensor + by if name.endswith("norm.weight") else tensor for name, tensor in tensors.items()}


def write(
    path: Path,
    architecture: str,
    tensors: Tensors,
    metadata: Mapping[str, Any],
    kind: str | Callable[[str], str] = "F32",
) -> Path:
    """Write matrices as `kind`, and as F32 what has one dimension or rows that are no whole blocks."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add(writer, key, value)
    for name, tensor in tensors.items():
        array = tensor.detach().to(torch.float32).contiguous().numpy()
        wanted = kind if isinstance(kind, str) else kind(name)
        if wanted == "F32" or not whole_blocks(tensor, wanted):
            writer.add_tensor(name, array)
        elif wanted == "F16":
            writer.add_tensor(name, array.astype(np.float16))
        else:
            type_ = gguf.GGMLQuantizationType[wanted]
            writer.add_tensor(name, gguf.quants.quantize(array, type_), raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def whole_blocks(tensor: torch.Tensor, kind: str) -> bool:
    block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0]
    return tensor.ndim > 1 and tensor.shape[-1] % block == 0


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata value, by the type that Python gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bytes):
        writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)
    else:
        writer.add_array(key, value)


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights, norms and biases that differ everywhere, so that no two can be mistaken for each other."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
