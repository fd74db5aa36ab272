"""Undo what llama.cpp's converter does to the rows of attention's q and k.

Models that rotate the two halves of a head against each other (Llama, Mistral) are stored for a RoPE that rotates
neighbours, so row i of a half stands at row 2i. How many heads there are is in the metadata, and may differ by layer.
"""

from __future__ import annotations

import math
import re

import torch

from gguf_loader._errors import GgufKeyError, GgufMetadataError, quoted
from gguf_loader.file._header import GgufHeader
from gguf_loader.file._metadata import GgufMetadata
from gguf_loader.packed._tensor import PackedTensor

_PROJECTION = re.compile(r"blk\.(\d+)\.attn_([qk])\.(?:weight|bias)")


def heads_of(name: str, header: GgufHeader, architecture: str | None = None) -> int | None:
    """The number of heads in the rows of a tensor of llama.cpp's name; None where it is no q or k projection.

    The architecture is the one that the file's metadata are under, where the file does not say it.

    Raises:
        GgufMetadataError: the metadata do not say it.
    """
    found = _PROJECTION.fullmatch(name)
    if found is None:
        return None
    metadata = header.metadata
    key = f"{header.architecture or architecture}.attention.head_count"
    if found[2] == "k" and f"{key}_kv" in metadata:
        key = f"{key}_kv"
    return _count(metadata, key, int(found[1]), header.path)


def restore_row_order(tensor: torch.Tensor, heads: int, name: str) -> torch.Tensor:
    """The tensor with the rows of each head as the original checkpoint has them: even rows first, then odd ones.

    Quantised rows of whole blocks move without a change. The result is a copy, since rows of a mapped file
    cannot be reordered in place.

    Raises:
        GgufKeyError: the rows are no even number for each head, or packed rows that are no whole blocks.
    """
    rows = tensor.shape[0]
    if heads < 1 or rows % (2 * heads):
        raise GgufKeyError(
            f"{rows} rows cannot be {heads} heads of an even number of rows",
            field=f"tensor {quoted(name)}",
            remedy="the head count in the metadata does not belong to these weights",
        )
    order = torch.arange(rows).view(heads, rows // heads // 2, 2).transpose(1, 2).reshape(-1)
    if isinstance(tensor, PackedTensor):
        row_weights, kind = math.prod(tensor.shape[1:]), tensor.ggml_type
        if row_weights % kind.block_size:
            raise GgufKeyError(
                f"rows of {row_weights} weights share {kind.name} blocks of {kind.block_size}",
                field=f"tensor {quoted(name)}",
                remedy="convert the text encoder again, with this tensor in rows of whole blocks",
            )
        blocks = tensor.packed.view(rows, -1).index_select(0, order.to(tensor.device))
        return tensor.with_blocks(blocks.view(-1))
    return tensor.index_select(0, order.to(tensor.device))


def _count(metadata: GgufMetadata, key: str, layer: int, path: str) -> int:
    if key not in metadata or isinstance(metadata[key], int):
        return metadata.integer(key)
    counts = metadata.array(key)
    if layer >= len(counts):
        raise GgufMetadataError(
            f"head counts for {len(counts)} layers, but there is a layer {layer}",
            path=path,
            field=f"metadata {quoted(key)}",
        )
    return counts.integers()[layer]
