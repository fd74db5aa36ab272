"""The tensor records of a header: what each tensor is, and the proof that its bytes lie where the record says."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from operator import attrgetter

from gguf_loader._errors import GgufFormatError, GgufTypeError, quoted
from gguf_loader._types import GgmlType, type_by_id

from ._arrays import GgufArray
from ._cursor import U32, U64, Cursor
from ._format import MAX_DIMS, MAX_NAME_BYTES, MAX_WEIGHTS, ORIG_SHAPE_PREFIX
from ._metadata import GgufMetadata

_DIMS = tuple(struct.Struct(f"<{count}Q") for count in range(MAX_DIMS + 1))
_TYPE_AND_OFFSET = struct.Struct("<IQ")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor of a GGUF file, without its bytes.

    Attributes:
        name: as in the file.
        shape: in torch order (the slowest dimension first), or the original shape that ComfyUI's converter recorded
            under `comfy.gguf.orig_shape.<name>` where the tensor was flattened to be quantised.
        ggml_type: how the weights are stored.
        offset_bytes: where the bytes start, from the start of the data section (`GgufHeader.data_offset_bytes`).
        size_bytes: how many there are.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: GgmlType
    offset_bytes: int
    size_bytes: int


def parse_tensors(cursor: Cursor, count: int, metadata: GgufMetadata) -> tuple[dict[str, TensorInfo], list[int]]:
    """Read `count` tensor records at the cursor.

    Returns:
        the tensors by name, and where in the file the offset of each stands.

    Raises:
        GgufFormatError: a record is malformed, a name is repeated, or an original shape does not hold the weights.
        GgufTypeError: a type is unknown or was removed.
    """
    reshaped = {key for key in metadata if key.startswith(ORIG_SHAPE_PREFIX)}
    tensors: dict[str, TensorInfo] = {}
    offsets_at = []
    for index in range(count):
        at = cursor.offset
        name = cursor.text(f"tensor {index} name", MAX_NAME_BYTES)
        if name in tensors:
            raise cursor.fail(f"tensor {index} name", at, f"{quoted(name)} appears twice")
        tensor = _record(cursor, name)
        if reshaped and ORIG_SHAPE_PREFIX + name in reshaped:
            tensor = _with_original_shape(cursor, tensor, metadata)
        tensors[name] = tensor
        offsets_at.append(cursor.offset - U64.size)
    return tensors, offsets_at


def check_layout(
    cursor: Cursor, tensors: Mapping[str, TensorInfo], offsets_at: list[int], data_offset_bytes: int, alignment: int
) -> None:
    """Prove that the bytes of every tensor lie in the file, aligned and apart from each other.

    Raises:
        GgufFormatError: an offset is unaligned, outside the file, or inside another tensor.
    """

    def fail(tensor: TensorInfo, reason: str) -> GgufFormatError:
        return cursor.fail(f"tensor {quoted(tensor.name)} offset", offsets_at[list(tensors).index(tensor.name)], reason)

    before = None
    end = 0
    for tensor in sorted(tensors.values(), key=attrgetter("offset_bytes")):
        offset = tensor.offset_bytes
        if offset % alignment:
            raise fail(tensor, f"{offset} is no multiple of the alignment {alignment}")
        if before is not None and offset < end:
            raise fail(tensor, f"{offset} lies inside tensor {quoted(before.name)}, which ends at {end}")
        before = tensor
        end = offset + tensor.size_bytes
    # In this order only the last tensor can lead out of the file.
    if before is not None and data_offset_bytes + end > cursor.file_size:
        raise fail(
            before,
            f"{before.size_bytes} bytes from byte {data_offset_bytes + before.offset_bytes} on do not end within the "
            f"file's {cursor.file_size}",
        )


def _record(cursor: Cursor, name: str) -> TensorInfo:
    buffer = cursor.buffer
    count_at = cursor.offset
    dims_at = count_at + 4
    if dims_at > cursor.size:
        raise cursor.ends_inside(f"tensor {quoted(name)} n_dims", count_at)
    count = U32.unpack_from(buffer, count_at)[0]
    if count > MAX_DIMS:
        raise cursor.fail(f"tensor {quoted(name)} n_dims", count_at, f"{count} dimensions, not 0 to {MAX_DIMS}")
    fixed_at = dims_at + 8 * count
    end = fixed_at + 12
    if end > cursor.size:
        raise cursor.ends_inside(f"tensor {quoted(name)} dims, type or offset", dims_at)
    dims = _DIMS[count].unpack_from(buffer, dims_at)
    number, offset_bytes = _TYPE_AND_OFFSET.unpack_from(buffer, fixed_at)
    cursor.offset = end
    try:
        ggml_type = type_by_id(number)
    except GgufTypeError as error:
        error.path, error.field, error.offset_bytes = cursor.path, f"tensor {quoted(name)} type", fixed_at
        raise
    weights = prod(dims)
    if weights == 0 or weights > MAX_WEIGHTS:
        raise cursor.fail(f"tensor {quoted(name)} dims", dims_at, f"{dims} gives {weights} weights, not 1 to 2^63 - 1")
    size_bytes = weights * ggml_type.type_size
    if ggml_type.block_size > 1:
        row = dims[0] if dims else 1
        if row % ggml_type.block_size:
            raise cursor.fail(
                f"tensor {quoted(name)} dims",
                dims_at,
                f"rows of {row} are no multiple of the {ggml_type} block of {ggml_type.block_size}",
            )
        size_bytes //= ggml_type.block_size
    return TensorInfo(
        name=name, shape=dims[::-1], ggml_type=ggml_type, offset_bytes=offset_bytes, size_bytes=size_bytes
    )


def _with_original_shape(cursor: Cursor, tensor: TensorInfo, metadata: GgufMetadata) -> TensorInfo:
    key = ORIG_SHAPE_PREFIX + tensor.name
    value = metadata[key]
    if not isinstance(value, GgufArray):
        raise cursor.fail(f"metadata {quoted(key)}", metadata.value_offset(key), "not an array of integers")
    if len(value) > MAX_DIMS:
        raise cursor.fail(
            f"metadata {quoted(key)}", value.offset_bytes, f"{len(value)} dimensions, not 0 to {MAX_DIMS}"
        )
    shape = value.integers_from(cursor)
    if min(shape, default=1) < 1 or prod(shape) != prod(tensor.shape):
        raise cursor.fail(
            f"metadata {quoted(key)}",
            value.offset_bytes,
            f"original shape {shape} does not hold the {prod(tensor.shape)} weights of the tensor's {tensor.shape}",
        )
    return TensorInfo(
        name=tensor.name,
        shape=shape,
        ggml_type=tensor.ggml_type,
        offset_bytes=tensor.offset_bytes,
        size_bytes=tensor.size_bytes,
    )
