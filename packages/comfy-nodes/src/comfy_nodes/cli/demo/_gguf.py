"""The demo's model as GGUF: written with the gguf package, which is the reference here, and read with gguf-loader."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import gguf
import torch

from comfy_nodes.cli.demo._model import CONFIG_KEY, DemoConfig, DemoTransformer, empty_model, model_of
from gguf_loader import GgufCheckpoint, PackedTensor, load_gguf, load_packed

ARCHITECTURE = "torchspan-demo"


def write_quantized(path: Path, config: DemoConfig, weights: Mapping[str, torch.Tensor], type_name: str) -> int:
    """Write a model as GGUF and return the size of the file in bytes.

    As converters do, only the matrices of linear layers are quantised, and only those whose rows are whole blocks.

    Args:
        path: file to write; replaced when it exists.
        config: shape of the model, kept in the metadata of the file.
        weights: float32 tensors by name.
        type_name: ggml type of the matrices, one that the gguf package can quantise to.
    """
    kind = gguf.GGMLQuantizationType[type_name]
    block_size, _ = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, ARCHITECTURE)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string(CONFIG_KEY, json.dumps(asdict(config)))
    for name, tensor in weights.items():
        array = tensor.numpy()
        if name.endswith(".weight") and tensor.ndim == 2 and tensor.shape[1] % block_size == 0:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def load_quantized(path: Path) -> DemoTransformer:
    """Build the model that `write_quantized` wrote, its matrices still packed.

    Raises:
        GgufError: the file is malformed, or `write_quantized` did not write it.
    """
    checkpoint = load_gguf(path, dtype=torch.float32)
    model = empty_model(_config_of(checkpoint))
    # Copied out of the mapped file, which the demo deletes while the model is still in use.
    load_packed(model, {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()})
    return model


def load_dequantized(path: Path) -> DemoTransformer:
    """Build an ordinary model with the weights that the quantised ones stand for.

    Raises:
        GgufError: as `load_quantized`.
    """
    checkpoint = load_gguf(path, dtype=torch.float32)
    weights = {
        name: tensor.dequantize() if isinstance(tensor, PackedTensor) else tensor.clone()
        for name, tensor in checkpoint.state_dict.items()
    }
    return model_of(_config_of(checkpoint), weights)


def _config_of(checkpoint: GgufCheckpoint) -> DemoConfig:
    return DemoConfig(**json.loads(checkpoint.header.metadata.text(CONFIG_KEY)))
