"""Reading the header of a safetensors file: names, shapes and sizes of 20 GB in milliseconds, no weights.

The format (https://github.com/huggingface/safetensors#format): eight bytes, little-endian, that hold the length N of
the header; N bytes of JSON that map each name to ``dtype``, ``shape`` and ``data_offsets`` and may map
``__metadata__`` to strings; then the data, without holes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

from block_discovery._dtypes import SAFETENSORS_BITS, torch_name
from block_discovery._errors import HeaderError, InvalidJsonError
from block_discovery._identify import HEAD_BYTES, foreign_format
from block_discovery._json import parse_json
from block_discovery._quoting import quoted
from block_discovery._regular import FileStamp, open_regular, stamp_of
from block_discovery._tree import MAX_SIZE_BYTES, TensorInfo

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""

MAX_TENSORS = 250_000
"""In one checkpoint; the largest that are published have about 160,000."""

_DOWNLOAD_AGAIN = "download or save the file again"
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_FEW_SIZES = 16
_NOT_SAFETENSORS = "this is no safetensors file, or a damaged one; name the right file, or download it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """What the header of a safetensors file declares, and how much of it is there.

    Attributes:
        path: the file, or the index of a sharded checkpoint.
        tensors: every tensor by name, in the order of the header (of a sharded checkpoint, shard by shard).
        metadata: the file's own notes; of a sharded checkpoint those that all shards agree on.
        data_bytes: bytes of weights that the header declares.
        starts: first byte of each tensor in the file; empty for a sharded checkpoint, which is several files.
        codes: the element type of each tensor by its name in the header; empty for a sharded checkpoint.
        stamp: identity of the file when it was read, for `open_regular`; of a sharded checkpoint that of the index.
        shards: of a sharded checkpoint the header of each file, in the order in which the index names them.
        missing_bytes: bytes by which the file is shorter than that; 0 for a complete file. A file that is only a header
            is enough to plan with; whether it can be loaded is for the caller to decide.
    """

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_bytes: int
    missing_bytes: int
    starts: Mapping[str, int] = field(default_factory=dict)
    codes: Mapping[str, str] = field(default_factory=dict)
    stamp: FileStamp | None = None
    shards: tuple[SafetensorsHeader, ...] = ()


def read_safetensors_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """Read and check the header of a safetensors file; the weights are not touched.

    Args:
        path: the file; it may be cut off anywhere after its header.

    Raises:
        HeaderError: the file is not safetensors, or its header contradicts itself or the length of the file.
        NotRegularFileError: it is a folder, a pipe or a device.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with open_regular(path) as file:
        stamp = stamp_of(file)
        file_bytes = stamp.size_bytes
        head = file.read(HEAD_BYTES)
        length = _read_length(path, head, file_bytes)
        raw = head[LENGTH_BYTES : LENGTH_BYTES + length] + file.read(max(0, length + LENGTH_BYTES - len(head)))
    # Before and after reading it: a key may be written in another way, and reading takes its time.
    require_few_tensors(path, raw.count(b'"data_offsets"'))
    entries = _parse(path, raw)
    require_few_tensors(path, len(entries))
    metadata = _metadata(path, entries.pop("__metadata__", None))
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in entries.items():
        start, tensors[name] = _tensor(path, name, entry)
        spans.append((start, start + tensors[name].size_bytes, name))
    data_bytes = _contiguous_end(path, sorted(spans))
    present = file_bytes - LENGTH_BYTES - length
    if present > data_bytes:
        raise HeaderError(
            f"the file is {present - data_bytes} bytes longer than its header declares",
            subject=str(path),
            offset_bytes=LENGTH_BYTES + length + data_bytes,
            remedy=_DOWNLOAD_AGAIN,
        )
    return SafetensorsHeader(
        path=path,
        tensors=MappingProxyType(tensors),
        metadata=MappingProxyType(metadata),
        data_bytes=data_bytes,
        missing_bytes=data_bytes - present,
        starts=MappingProxyType({name: LENGTH_BYTES + length + start for start, _, name in spans}),
        codes=MappingProxyType({name: entry["dtype"] for name, entry in entries.items()}),
        stamp=stamp,
    )


def _read_length(path: Path, head: bytes, file_bytes: int) -> int:
    """The header's length, checked against the format's limit and the file."""
    foreign = None if head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" else foreign_format(head)
    if foreign is not None:
        found, remedy = foreign
        raise HeaderError(f"this is {found}", subject=str(path), offset_bytes=0, remedy=remedy)
    if len(head) < LENGTH_BYTES:
        raise HeaderError(
            f"the file has {file_bytes} bytes, too few for the length of a header",
            subject=str(path),
            offset_bytes=0,
            remedy=_DOWNLOAD_AGAIN,
        )
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(
            f"the first eight bytes announce a header of {length} bytes, above the limit of {MAX_HEADER_BYTES}",
            subject=str(path),
            offset_bytes=0,
            remedy=_NOT_SAFETENSORS,
        )
    if length > file_bytes - LENGTH_BYTES:
        raise HeaderError(
            f"the header is {length} bytes long, but only {file_bytes - LENGTH_BYTES} follow: it is truncated, "
            "or this is no safetensors file",
            subject=str(path),
            offset_bytes=LENGTH_BYTES,
            remedy=_DOWNLOAD_AGAIN,
        )
    return length


def require_few_tensors(path: Path, count: int) -> None:
    """Refuse a header or index of so many tensors that discovery would take minutes.

    Raises:
        HeaderError: more than `MAX_TENSORS`.
    """
    if count > MAX_TENSORS:
        raise HeaderError(
            f"{count} tensors are listed, above the limit of {MAX_TENSORS}", subject=str(path), remedy=_NOT_SAFETENSORS
        )


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        entries = parse_json(raw)
    except InvalidJsonError as error:
        raise HeaderError(
            f"the header is {error.reason}",
            subject=str(path),
            offset_bytes=LENGTH_BYTES + (error.offset_bytes or 0),
            remedy=_NOT_SAFETENSORS,
        ) from error
    if not isinstance(entries, dict):
        raise HeaderError(
            "the header is no JSON object", subject=str(path), offset_bytes=LENGTH_BYTES, remedy=_NOT_SAFETENSORS
        )
    return entries


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise HeaderError(
            "__metadata__ does not map names to strings", subject=str(path), remedy="save the file with string metadata"
        )
    return value


def _tensor(path: Path, name: str, entry: Any) -> tuple[int, TensorInfo]:
    """The tensor that an entry describes, and the offset of its first byte in the data."""
    if not isinstance(entry, dict) or not entry.keys() >= _FIELDS:
        raise _refusal(path, name, "the entry has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SAFETENSORS_BITS:
        raise HeaderError(
            f"the element type {quoted(dtype)} is unknown",
            subject=f"{path}: tensor {quoted(name)}",
            remedy=f"known are {', '.join(SAFETENSORS_BITS)}; a newer release may know more",
        )
    if not isinstance(shape, list) or not _are_sizes(shape):
        raise _refusal(path, name, f"the shape {quoted(shape)} is not a list of sizes of 0 or more")
    if not isinstance(offsets, list) or len(offsets) != 2 or not _are_sizes(offsets):
        raise _refusal(path, name, f"the data_offsets {quoted(offsets)} are not two positions of 0 or more")
    start, stop = offsets
    elements = math.prod(shape) if len(shape) <= _FEW_SIZES else _bounded_product(shape)
    bits = elements * SAFETENSORS_BITS[dtype]
    if bits > 8 * MAX_SIZE_BYTES:
        raise _refusal(path, name, f"the size of shape {quoted(shape)} overflows 64 bits")
    if bits % 8:
        raise _refusal(path, name, f"{elements} elements of {dtype} are no whole number of bytes")
    if stop - start != bits // 8:
        raise _refusal(
            path,
            name,
            f"{dtype} of shape {quoted(shape)} takes {bits // 8} bytes, "
            f"the offsets {quoted(start)} to {quoted(stop)} say {quoted(stop - start)}",
        )
    return start, TensorInfo(name=name, size_bytes=bits // 8, shape=tuple(shape), dtype=torch_name(dtype))


def _refusal(path: Path, name: str, reason: str) -> HeaderError:
    return HeaderError(reason, subject=f"{path}: tensor {quoted(name)}", remedy=_DOWNLOAD_AGAIN)


def _are_sizes(values: list[Any]) -> bool:
    """Whether all are whole numbers of 0 or more; true and false are not."""
    return all(type(value) is int and value >= 0 for value in values)


def _bounded_product(sizes: list[int]) -> int:
    """The product, or a number beyond the limit: of a damaged shape it could have millions of digits."""
    return reduce(lambda product, size: min(product * size, 8 * MAX_SIZE_BYTES), sizes, 1)


def _contiguous_end(path: Path, spans: list[tuple[int, int, str]]) -> int:
    """The end of the last span; spans must follow each other without overlap and without holes."""
    end = 0
    for start, stop, name in spans:
        if start != end:
            what = "overlaps the tensor before it" if start < end else f"leaves {start - end} bytes before it unused"
            raise HeaderError(
                f"the tensor at offsets {start} to {stop} {what}, which ends at {end}",
                subject=f"{path}: tensor {quoted(name)}",
                remedy=_DOWNLOAD_AGAIN,
            )
        end = stop
    return end
