"""Files that `torchspan pack` wrote, read for the host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from block_discovery import HeaderError, read_safetensors_header
from comfy_nodes.host._errors import ModelFileError
from device_placement.packed import PackedError, PackedFile, PackedWeight

METADATA_KEY = "torchspan.packed"


def is_packed_file(path: str | Path) -> bool:
    """Whether a file holds packed weights; False for one that cannot be read, which its loader refuses better."""
    if Path(path).suffix.lower() not in (".safetensors", ".sft"):
        return False
    try:
        return METADATA_KEY in read_safetensors_header(path).metadata
    except (HeaderError, OSError):
        return False


def read_packed(path: str | Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The tensors of a packed file by the names of its source, packed ones as `PackedWeight`, and its metadata.

    Raises:
        ModelFileError: the file is damaged.
    """
    try:
        with PackedFile(path) as file:
            return dict(file), dict(file.metadata)
    except (PackedError, HeaderError) as error:
        raise ModelFileError(path, str(error), "fetch or pack it again") from error


def read_dense(path: str | Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """The same, all dense: what the source of the packed file holds.

    Raises:
        ModelFileError: the file is damaged.
    """
    tensors, metadata = read_packed(path)
    for name, tensor in tensors.items():
        if isinstance(tensor, PackedWeight):
            tensors[name] = tensor.dense()
    return tensors, metadata
