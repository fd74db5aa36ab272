"""The names and sizes in a model's file, read from its header: what can be planned before a byte of weights is."""

from __future__ import annotations

from pathlib import Path

from block_discovery import HeaderError, read_safetensors_header, read_safetensors_index
from comfy_nodes.host._errors import ModelFileError
from comfy_nodes.host._layers import Sizes
from gguf_loader import GgufError, read_header

GGUF_SUFFIX = ".gguf"
_READABLE = (".safetensors", ".sft", ".json")

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
    return {name: (tensor.shape, tensor.size_bytes) for name, tensor in header.tensors.items()}


def is_stored_as_loaded(path: str | Path) -> bool:
    """Whether a loaded model takes as many bytes as its file: not sure where the host may choose a smaller type."""
    file = Path(path)
    if file.suffix.lower() == GGUF_SUFFIX or file.suffix == ".json":
        return file.suffix.lower() == GGUF_SUFFIX
    types = {tensor.dtype for tensor in read_safetensors_header(file).tensors.values() if len(tensor.shape) > 1}
    return bool(types) and types <= {"bfloat16", "float16"}


def diffusion_prefix(sizes: Sizes) -> str:
    """What stands before the names of the diffusion model; nothing in a file that is one."""
    for prefix in _UNET_PREFIXES:
        if any(name.startswith(prefix) for name in sizes):
            return prefix
    return ""
