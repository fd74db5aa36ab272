"""From a GGUF file to a state dict: native tensors as plain views, quantised ones packed, none of them copied."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from os import PathLike

import torch

from ._errors import GgufKeyError, GgufTypeError, quoted
from .file._header import GgufHeader
from .file._mapping import GgufFile, open_gguf
from .packed._tensor import PackedTensor

_LOG = logging.getLogger(__name__)

# ggml's own formats for activations within a product: no weight is ever stored in them, and nothing dequantises them.
_ACTIVATION_TYPES = frozenset({"Q8_1", "Q8_K"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufCheckpoint:
    """A loaded GGUF file.

    Attributes:
        header: what the file says of itself.
        state_dict: tensors by name; `PackedTensor` where quantised. All are views of the mapped file.
        left_out: names that were left out because others carry the prefix that was asked for.
    """

    header: GgufHeader
    state_dict: dict[str, torch.Tensor]
    left_out: tuple[str, ...] = ()


def load_gguf(
    path: str | PathLike[str], *, prefix: str | None = None, dtype: torch.dtype = torch.bfloat16
) -> GgufCheckpoint:
    """Map a GGUF file as a state dict. Nothing is copied and no weight is read before it is used.

    Args:
        path: the file.
        prefix: where any name starts with it, it is cut off and the other names are left out.
        dtype: what the packed tensors dequantise to by default. Native tensors keep the dtype of the file.

    Raises:
        GgufFormatError: the file is malformed.
        GgufUnsupportedError: the file is big-endian, of another version, or one part of a split.
        GgufTypeError: a tensor is of a type that holds no weights (Q8_1, Q8_K) or is unknown.
        GgufKeyError: a name without its prefix is that of another tensor.
        OSError: the file cannot be opened or mapped.
    """
    file = open_gguf(path)
    names = _names(file.header, prefix)
    left_out = tuple(name for name in file.header.tensors if name not in names)
    if left_out:
        _LOG.info("%s: %d tensors without the prefix %r left out", file.header.path, len(left_out), prefix)
    return GgufCheckpoint(
        header=file.header,
        state_dict={key: tensor_of(file, name, dtype) for name, key in names.items()},
        left_out=left_out,
    )


def tensor_of(file: GgufFile, name: str, dtype: torch.dtype) -> torch.Tensor:
    """One tensor of a file: a plain view where torch has its type, else packed.

    Raises:
        GgufTypeError: nothing dequantises the type.
    """
    tensor = file.header.tensors[name]
    if tensor.ggml_type.name in _ACTIVATION_TYPES:
        raise GgufTypeError(
            f"{tensor.ggml_type} is a format of activations; no weights are stored in it",
            path=file.header.path,
            field=f"tensor {quoted(name)} type",
            remedy="quantise the original checkpoint to one of the weight types, such as Q8_0",
        )
    if not tensor.ggml_type.is_quantized:
        return file.native_tensor(name)
    return PackedTensor(file.tensor_bytes(name), tensor.ggml_type, tensor.shape, dtype=dtype)


def _names(header: GgufHeader, prefix: str | None) -> dict[str, str]:
    if not prefix or not any(name.startswith(prefix) for name in header.tensors):
        return {name: name for name in header.tensors}
    names = {name: name.removeprefix(prefix) for name in header.tensors if name.startswith(prefix)}
    for name, key in names.items():
        if key in header.tensors:
            raise GgufKeyError(
                f"without its prefix it has the name of another tensor, {quoted(key)}",
                path=header.path,
                field=f"tensor {quoted(name)}",
                remedy="load the file with the prefix that its names really have, or with none",
            )
    return names
