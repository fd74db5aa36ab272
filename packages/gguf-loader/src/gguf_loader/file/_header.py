"""The header of a GGUF file: all that is known of it without touching a weight."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from gguf_loader._errors import GgufKeyError, GgufUnsupportedError

from ._cursor import U32, U64, Cursor
from ._format import (
    ALIGNMENT_KEY,
    ARCHITECTURE_KEY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_ALIGNMENT,
    MAX_PAIRS,
    MAX_TENSORS,
    MIN_METADATA_BYTES,
    MIN_TENSOR_BYTES,
    SPLIT_COUNT_KEY,
    SPLIT_NUMBER_KEY,
    TYPE_KEY,
    VERSIONS,
    ValueType,
)
from ._identify import REMEDIES, Contents, contents_of, foreign_format
from ._metadata import GgufMetadata, parse_metadata
from ._opening import FileStamp, open_regular
from ._tensors import TensorInfo, check_layout, parse_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What a GGUF file says of itself. Pure data: holds no file open, can be pickled and sent to another process.

    Attributes:
        path: absolute path of the file.
        version: of the format, 2 or 3.
        alignment: of the tensors' bytes.
        metadata: the key-value pairs; arrays are read when asked for.
        tensors: by name, in file order.
        data_offset_bytes: where the data section starts, which the tensors' offsets count from.
        stamp: size, time of change and inode of the file.
    """

    path: str
    version: int
    alignment: int
    metadata: GgufMetadata
    tensors: Mapping[str, TensorInfo]
    data_offset_bytes: int
    stamp: FileStamp

    @property
    def contents(self) -> Contents:
        """Whether the tensors are those of a diffusion model, a text encoder, its vision part, or a LoRA.

        Their names decide, and `general.type`. What no name gives away counts as a diffusion model, of which new ones
        appear every week.
        """
        return contents_of(self.tensors, self.metadata.get(TYPE_KEY))

    def require(self, *wanted: Contents) -> None:
        """Refuse a file that holds something else.

        Raises:
            GgufKeyError: names what the file holds and what to do with it.
        """
        found = self.contents
        if found not in wanted:
            raise GgufKeyError(f"a {found}, not a {wanted[0]}", path=self.path, remedy=REMEDIES[found])

    @property
    def architecture(self) -> str | None:
        """The name under `general.architecture`: a hint, since converters invent names; None without one.

        Raises:
            GgufMetadataError: the value is not a string.
        """
        return self.metadata.text(ARCHITECTURE_KEY) if ARCHITECTURE_KEY in self.metadata else None

    def sizes(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape and bytes of every tensor by name, as planners take them."""
        return {name: (tensor.shape, tensor.size_bytes) for name, tensor in self.tensors.items()}

    def type_counts(self) -> dict[str, int]:
        """How many tensors there are of each ggml type, the most frequent first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.ggml_type.name] = counts.get(tensor.ggml_type.name, 0) + 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def read_header(path: str | PathLike[str]) -> GgufHeader:
    """Read and check the header of a GGUF file (version 2 or 3); no weight is read.

    Every length, count, type, shape and offset is checked against the file, so a header that comes back describes
    tensors that are really there.

    Raises:
        GgufFormatError: the file is malformed; names the field and its offset.
        GgufTypeError: a tensor is of an unknown or removed type.
        GgufUnsupportedError: big-endian, of another version, or one part of a split checkpoint.
        OSError: the file cannot be opened.
    """
    absolute = Path(path).absolute()
    with open_regular(str(absolute)) as file:
        stamp = FileStamp.of(file.fileno())
        if stamp.size_bytes == 0:
            return parse_header(b"", str(absolute), stamp)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
            return parse_header(mapping, str(absolute), stamp)


def parse_header(buffer: mmap.mmap | bytes, path: str, stamp: FileStamp) -> GgufHeader:
    """Parse the header at the start of a mapped file.

    Raises:
        GgufError: as `read_header`.
    """
    cursor = Cursor(buffer, path)
    version = _version(cursor)
    room = max(0, cursor.size - cursor.offset - 2 * U64.size)
    tensor_count = cursor.count(U64, "tensor count", most=min(room // MIN_TENSOR_BYTES, MAX_TENSORS), unit="tensors")
    pair_count = cursor.count(
        U64, "metadata count", most=min(room // MIN_METADATA_BYTES, MAX_PAIRS), unit="metadata pairs"
    )
    metadata = parse_metadata(cursor, pair_count, stamp)
    _refuse_split(metadata, path)
    alignment = _alignment(cursor, metadata)
    tensors, offsets_at = parse_tensors(cursor, tensor_count, metadata)
    data_offset_bytes = -(-cursor.offset // alignment) * alignment
    check_layout(cursor, tensors, offsets_at, data_offset_bytes, alignment)
    return GgufHeader(
        path=path,
        version=version,
        alignment=alignment,
        metadata=metadata,
        tensors=tensors,
        data_offset_bytes=data_offset_bytes,
        stamp=stamp,
    )


def _version(cursor: Cursor) -> int:
    magic = bytes(cursor.buffer[: len(MAGIC)])
    if magic != MAGIC:
        found = foreign_format(bytes(cursor.buffer[:512]))
        what, remedy = found or (f"{magic!r} instead of {MAGIC!r}", "choose a GGUF file")
        raise cursor.fail("magic", 0, f"{what}, not a GGUF file" if found else what, remedy)
    cursor.offset = len(MAGIC)
    at = cursor.offset
    version = int(cursor.number(U32, "version"))
    if version in VERSIONS:
        return version
    if version and version & 0xFFFF == 0:
        raise GgufUnsupportedError(
            "a big-endian file",
            path=cursor.path,
            field="version",
            offset_bytes=at,
            remedy="convert it to little-endian with gguf's gguf_convert_endian",
        )
    raise GgufUnsupportedError(
        f"GGUF version {version}, where 2 and 3 can be read",
        path=cursor.path,
        field="version",
        offset_bytes=at,
        remedy="convert the original checkpoint with a current converter",
    )


def _alignment(cursor: Cursor, metadata: GgufMetadata) -> int:
    if ALIGNMENT_KEY not in metadata:
        return DEFAULT_ALIGNMENT
    value = metadata[ALIGNMENT_KEY]
    at = metadata.value_offset(ALIGNMENT_KEY)
    if metadata.value_type(ALIGNMENT_KEY) is not ValueType.UINT32 or not isinstance(value, int):
        raise cursor.fail(ALIGNMENT_KEY, at, f"{metadata.value_type(ALIGNMENT_KEY).name} instead of UINT32")
    if value < 8 or value > MAX_ALIGNMENT or value & (value - 1):
        raise cursor.fail(ALIGNMENT_KEY, at, f"{value} is no power of two from 8 to {MAX_ALIGNMENT}")
    return value


def _refuse_split(metadata: GgufMetadata, path: str) -> None:
    if SPLIT_COUNT_KEY not in metadata:
        return
    parts = metadata.integer(SPLIT_COUNT_KEY)
    if parts <= 1:
        return
    number = metadata.integer(SPLIT_NUMBER_KEY) + 1 if SPLIT_NUMBER_KEY in metadata else 1
    raise GgufUnsupportedError(
        f"part {number} of {parts} of a split checkpoint",
        path=path,
        field=SPLIT_COUNT_KEY,
        offset_bytes=metadata.value_offset(SPLIT_COUNT_KEY),
        remedy="merge the parts with llama-gguf-split --merge and load the result",
    )
