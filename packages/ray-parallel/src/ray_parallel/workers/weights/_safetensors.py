"""The layout of safetensors files, single or sharded, from what block-discovery reads of their headers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from alloc_spec import human_size
from block_discovery import HeaderError, SafetensorsHeader, read_safetensors_header, read_safetensors_index
from ray_parallel.workers.weights._errors import WeightsError
from ray_parallel.workers.weights._files import FileStamp, stamp
from ray_parallel.workers.weights._layout import TensorSlot, WeightsLayout

_INDEX_SUFFIX = ".safetensors.index.json"
_PACKED = "F4"
"""Counted singly in a header, while torch packs two elements into one."""


def read_layout(path: str | os.PathLike[str]) -> tuple[tuple[FileStamp, ...], WeightsLayout]:
    """Read where the tensors of a checkpoint lie; no weight is read.

    Args:
        path: a safetensors file, or the ``*.safetensors.index.json`` of a sharded one.

    Returns:
        The stamps of the files, and the layout whose parts they are.

    Raises:
        WeightsError: a file is no regular one, not safetensors, cut off, or holds a type that torch does not have.
        OSError: a file cannot be opened.
    """
    path = Path(path)
    stamp(path)  # a pipe is refused before anything waits for it
    try:
        header = read_safetensors_index(path) if path.name.endswith(_INDEX_SUFFIX) else read_safetensors_header(path)
    except HeaderError as error:
        raise WeightsError(error.subject or str(path), error.reason, error.remedy or "download it again") from error
    parts = header.shards or (header,)
    for part in parts:
        if part.missing_bytes:
            raise WeightsError(
                str(part.path),
                f"is cut off: {human_size(part.missing_bytes)} of its weights are missing",
                "download it again",
            )
    stamps = tuple(stamp(part.path) for part in parts)
    slots = tuple(slot for place, part in enumerate(parts) for slot in _slots(part, place))
    sizes = tuple(file.size_bytes for file in stamps)
    return stamps, WeightsLayout(slots=slots, part_bytes=sizes, metadata=dict(header.metadata))


def _slots(header: SafetensorsHeader, part: int) -> Iterator[TensorSlot]:
    for name, start in sorted(header.starts.items(), key=lambda item: item[1]):
        tensor, code = header.tensors[name], header.codes[name]
        if tensor.dtype is None:
            raise WeightsError(
                f"{header.path}: tensor {name!r}", f"has the type {code}, which torch does not have", "convert the file"
            )
        shape = tensor.shape
        yield TensorSlot(
            name=name,
            dtype=tensor.dtype,
            shape=(*shape[:-1], shape[-1] // 2) if code == _PACKED and shape else shape,
            size_bytes=tensor.size_bytes,
            part=part,
            offset_bytes=start,
        )
