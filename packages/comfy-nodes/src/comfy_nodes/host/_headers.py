"""The names and sizes in a model's file, read from its header: what can be planned before a byte of weights is."""

from __future__ import annotations

import math
from pathlib import Path

from block_discovery import HeaderError, read_safetensors_header, read_safetensors_index
from comfy_nodes.host._errors import ModelFileError
from comfy_nodes.host._layers import Sizes
from comfy_nodes.host._packed_files import METADATA_KEY
from device_placement.packed import PackedError, PackedFile
from gguf_loader import GgufError, read_header

GGUF_SUFFIX = ".gguf"
_READABLE = (".safetensors", ".sft", ".json")
_HALF = frozenset({"bfloat16", "float16"})
_DENSE = _HALF | {"float32"}

_UNET_PREFIXES = ("model.diffusion_model.", "model.model.", "net.", "diffusion_model.")
"""What checkpoints put before the names of their diffusion model; the first that occurs counts."""


def has_header(path: str | Path) -> bool:
    """Whether names and sizes can be read without loading: safetensors and GGUF files, not pickled ones."""
    return Path(path).suffix.lower() in (GGUF_SUFFIX, *_READABLE)


def read_sizes(path: str | Path) -> Sizes:
    """Shape and bytes of every tensor of a file.

    Raises:
        ModelFileError: the file is missing, of another kind, malformed, or ends before its weights do.
    """
    file = Path(path)
    if not has_header(file):
        raise ModelFileError(file, "it is no safetensors or GGUF file, so its header says nothing", "convert it")
    try:
        if file.suffix.lower() == GGUF_SUFFIX:
            return read_header(file).sizes()
        read = read_safetensors_index if file.suffix == ".json" else read_safetensors_header
        header = read(file)
    except (HeaderError, GgufError) as error:
        raise ModelFileError(file, str(error), "fetch the file again") from error
    except OSError as error:
        raise ModelFileError(file, error.strerror or str(error), "choose a file that is there") from error
    if header.missing_bytes:
        reason = f"it ends {header.missing_bytes} bytes before its header says"
        raise ModelFileError(file, reason, "the download was cut off: fetch it again")
    if METADATA_KEY in header.metadata:
        try:
            with PackedFile(file) as packed:
                return packed.sizes
        except PackedError as error:
            raise ModelFileError(file, str(error), "fetch or pack it again") from error
    return {name: (tensor.shape, tensor.size_bytes) for name, tensor in header.tensors.items()}


def loaded_sizes(path: str | Path, element_bytes: int | None = None) -> Sizes | None:
    """Shape and bytes of every tensor once it is loaded; None where only the host can tell, with the file read.

    Args:
        path: of the file.
        element_bytes: of the type in which the host loads weights; None where it chooses, which it does by
            architecture, device and free memory, but for packed weights and those in half precision.

    Raises:
        ModelFileError: see `read_sizes`.
    """
    sizes = read_sizes(path)
    file = Path(path)
    if file.suffix.lower() == GGUF_SUFFIX:
        return sizes
    if file.suffix == ".json":
        return None
    types = {tensor.dtype for tensor in read_safetensors_header(file).tensors.values() if len(tensor.shape) > 1}
    if element_bytes is None:
        return sizes if types and types <= _HALF else None
    if not types <= _DENSE:
        return None
    return {name: (shape, math.prod(shape) * element_bytes) for name, (shape, _) in sizes.items()}


def diffusion_prefix(sizes: Sizes) -> str:
    """What stands before the names of the diffusion model; nothing in a file that is one."""
    for prefix in _UNET_PREFIXES:
        if any(name.startswith(prefix) for name in sizes):
            return prefix
    return ""
