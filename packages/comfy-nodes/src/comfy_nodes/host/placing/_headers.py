"""The names and sizes in a model's file, read from its header: what can be planned before a byte of weights is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from block_discovery import HeaderError, read_safetensors_header, read_safetensors_index
from comfy_nodes.host._errors import ModelFileError
from comfy_nodes.host.app._packed_files import METADATA_KEY
from comfy_nodes.host.placing._layers import Sizes
from device_placement.packed import PackedError, PackedFile
from gguf_loader import GgufError, GgufHeader, read_header

GGUF_SUFFIX = ".gguf"
_READABLE = (".safetensors", ".sft", ".json")
_HALF = frozenset({"bfloat16", "float16"})
_DENSE = _HALF | {"float32"}

_LORA_PARTS = (".lora_", "_lora.", ".lora.", ".hada_w", ".lokr_w", ".oft_blocks", ".dora_scale", ".diff_b")

_UNET_PREFIXES = ("model.diffusion_model.", "model.model.", "net.", "diffusion_model.")
"""What checkpoints put before the names of their diffusion model; the first that occurs counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHeader:
    """What the header of a model's file says, read once.

    Attributes:
        path: the file.
        sizes: shape and bytes of every tensor by its name in the file.
        dtypes: element types of the matrices; None for packed weights and for a model in several files.
        gguf: the header of a GGUF file; None for others.
        is_packed: whether `torchspan pack` wrote it.
    """

    path: Path
    sizes: Sizes
    dtypes: frozenset[str] | None = None
    gguf: GgufHeader | None = None
    is_packed: bool = False

    @property
    def prefix(self) -> str:
        """What stands before the names of the diffusion model."""
        return diffusion_prefix(self.sizes)

    @property
    def is_lora(self) -> bool:
        """Whether the tensors are changes of a model, not a model."""
        changes = sum(any(part in name for part in _LORA_PARTS) for name in self.sizes)
        return 2 * changes > len(self.sizes)

    def loaded_sizes(self, element_bytes: int | None = None) -> Sizes | None:
        """Shape and bytes of every tensor once it is loaded; None where only the host can tell, with the file read.

        Args:
            element_bytes: of the type in which the host loads weights; None where it chooses, which it does by
                architecture, device and free memory, but for packed weights and those in half precision.
        """
        if self.gguf is not None:
            return self.sizes
        if not self.dtypes:
            return None
        if element_bytes is None:
            return self.sizes if self.dtypes <= _HALF else None
        if not self.dtypes <= _DENSE:
            return None
        return {name: (shape, math.prod(shape) * element_bytes) for name, (shape, _) in self.sizes.items()}


def has_header(path: str | Path) -> bool:
    """Whether names and sizes can be read without loading: safetensors and GGUF files, not pickled ones."""
    return Path(path).suffix.lower() in (GGUF_SUFFIX, *_READABLE)


def read_model_header(path: str | Path) -> ModelHeader:
    """Read the header of a safetensors file, a sharded checkpoint's index or a GGUF file.

    Raises:
        ModelFileError: the file is missing, of another kind, malformed, or ends before its weights do.
    """
    file = Path(path)
    if not has_header(file):
        raise ModelFileError(file, "it is no safetensors or GGUF file, so its header says nothing", "convert it")
    try:
        if file.suffix.lower() == GGUF_SUFFIX:
            packed = read_header(file)
            return ModelHeader(path=file, sizes=packed.sizes(), gguf=packed)
        is_index = file.suffix == ".json"
        header = read_safetensors_index(file) if is_index else read_safetensors_header(file)
    except (HeaderError, GgufError) as error:
        raise file_error(file, error) from error
    except OSError as error:
        raise ModelFileError(file, error.strerror or str(error), "choose a file that is there") from error
    if header.missing_bytes:
        reason = f"it ends {header.missing_bytes} bytes before its header says"
        raise ModelFileError(file, reason, "the download was cut off: fetch it again")
    if METADATA_KEY in header.metadata:
        try:
            with PackedFile(file) as packed_file:
                return ModelHeader(path=file, sizes=packed_file.sizes, is_packed=True)
        except PackedError as error:
            raise ModelFileError(file, str(error), "fetch or pack it again") from error
    matrices = frozenset(str(tensor.dtype) for tensor in header.tensors.values() if len(tensor.shape) > 1)
    sizes = {name: (tensor.shape, tensor.size_bytes) for name, tensor in header.tensors.items()}
    return ModelHeader(path=file, sizes=sizes, dtypes=None if is_index else matrices)


def file_error(path: str | Path, error: GgufError | HeaderError) -> ModelFileError:
    """What a package that reads files has found, with the path once and one remedy."""
    reason = error.detail if isinstance(error, GgufError) else error.reason
    return ModelFileError(path, reason, error.remedy or "fetch the file again")


def diffusion_prefix(sizes: Sizes) -> str:
    """What stands before the names of the diffusion model; nothing in a file that is one."""
    for prefix in _UNET_PREFIXES:
        if any(name.startswith(prefix) for name in sizes):
            return prefix
    return ""
