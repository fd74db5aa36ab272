"""Pack a safetensors file and unpack it, one tensor in memory at a time."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from block_discovery import SafetensorsHeader
from device_placement.packed._backend import decode_with
from device_placement.packed._codec import encode
from device_placement.packed._errors import PackedError
from device_placement.packed._file import FORMAT, METADATA_KEY, SUFFIX, VERSION, PackedFile, Stored
from device_placement.packed._format import LAST_BASE, MOST_ESCAPES, Layout
from device_placement.packed._sizes import LEAST_WEIGHTS, is_worth_packing
from device_placement.packed._tensor import PackedWeight

Progress = Callable[[int, int], None]
"""Receives the bytes of the source that are done, and all of them."""

HEADER_ALIGNMENT = 64
MOST_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """What became of a file.

    Attributes:
        tensors: how many it has.
        packed: how many of them are packed, in the packed one of the two files.
        source_bytes: bytes of the tensors in the source.
        target_bytes: bytes of the tensors in the new file.
    """

    tensors: int
    packed: int
    source_bytes: int
    target_bytes: int


def pack_file(
    source: str | Path,
    target: str | Path,
    *,
    least_weights: int = LEAST_WEIGHTS,
    encode_on: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> FileReport:
    """Write a packed copy of a safetensors file.

    Packed are bf16 tensors of two dimensions and more that get smaller; all others are copied unchanged. The new file
    appears under its name when it is complete.

    Args:
        source: a safetensors file.
        target: the new file.
        least_weights: smaller tensors stay dense.
        encode_on: device that packs.
        progress: called after each tensor.

    Raises:
        HeaderError: the source is not safetensors, or damaged.
        PackedError: the source is packed already, or the target exists.
        OSError: a file cannot be opened or written.
    """
    source, target = Path(source), Path(target)
    with PackedFile(source) as file:
        header = file.header
        if METADATA_KEY in header.metadata:
            raise PackedError(f"{source} is packed already; unpack it first to pack it again")
        candidates = [
            name
            for name, info in header.tensors.items()
            if is_worth_packing(info.shape, info.dtype, info.size_bytes, least_weights=least_weights)
        ]
        for name in candidates:
            if name + SUFFIX in header.tensors:
                raise PackedError(
                    f"{source}: tensor {name + SUFFIX!r} has the name that {name!r} gets when it is packed; rename it"
                )
        reserved = _reserved_bytes(header, candidates)
        stored: dict[str, Stored] = {}
        with _new_file(target) as out:
            out.write(bytes(reserved))
            done = 0
            for name in candidates:
                raw = file.read(name)
                dense = torch.frombuffer(raw, dtype=torch.uint8).view(torch.bfloat16).view(header.tensors[name].shape)
                found = encode(dense.to(encode_on))
                if found is None:
                    continue
                buffer, layout = found
                content = _bytes_of(buffer)
                stored[name] = Stored(layout, zlib.crc32(content))
                out.write(content)
                done = _advance(progress, done, len(raw), header.data_bytes)
            for name in _in_file_order(header, without=stored):
                raw = file.read(name)
                out.write(raw)
                done = _advance(progress, done, len(raw), header.data_bytes)
            target_bytes = out.tell() - reserved
            out.seek(0)
            out.write(_packed_header(header, stored, reserved))
    return FileReport(
        tensors=len(header.tensors), packed=len(stored), source_bytes=header.data_bytes, target_bytes=target_bytes
    )


def unpack_file(
    source: str | Path,
    target: str | Path,
    *,
    decode_on: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> FileReport:
    """Write the file that was packed: the same tensors, bit for bit, and the same metadata.

    Args:
        source: what `pack_file` wrote.
        target: the new file; it appears under its name when it is complete.
        decode_on: device that unpacks.
        progress: called after each tensor.

    Raises:
        HeaderError: the source is not safetensors, or damaged.
        DamagedPackError: a packed tensor is damaged.
        PackedError: the source is not packed, or the target exists.
        OSError: a file cannot be opened or written.
    """
    source, target = Path(source), Path(target)
    with PackedFile(source) as file:
        if METADATA_KEY not in file.header.metadata:
            raise PackedError(f"{source} is not packed; there is nothing to unpack")
        entries = {name: _dense_entry(file, name) for name in file}
        start = 0
        for entry, size_bytes in entries.values():
            entry["data_offsets"] = [start, start + size_bytes]
            start += size_bytes
        with _new_file(target) as out:
            described = {name: entry for name, (entry, _) in entries.items()}
            out.write(_header_bytes(described, dict(file.metadata)))
            done = 0
            for name, (_, size_bytes) in entries.items():
                if name in file.stored:
                    weight = file[name]
                    assert isinstance(weight, PackedWeight)
                    dense = decode_with(weight.packed.to(decode_on), weight.layout_w3)
                    out.write(_bytes_of(dense.view(-1).view(torch.uint8)))
                else:
                    out.write(file.read(name))
                done = _advance(progress, done, size_bytes, start)
    return FileReport(
        tensors=len(entries), packed=len(file.stored), source_bytes=file.header.data_bytes, target_bytes=start
    )


def _in_file_order(header: SafetensorsHeader, *, without: dict[str, Stored]) -> list[str]:
    """The tensors that stay dense, in the order of their bytes, which keeps them aligned as they were."""
    return sorted((name for name in header.tensors if name not in without), key=lambda name: header.starts[name])


def _advance(progress: Progress | None, done: int, size_bytes: int, total: int) -> int:
    if progress is not None:
        progress(done + size_bytes, total)
    return done + size_bytes


def _dense_entry(file: PackedFile, name: str) -> tuple[dict[str, Any], int]:
    """What the header of the unpacked file says of a tensor, without its offsets, and its bytes."""
    stored = file.stored.get(name)
    if stored is not None:
        return {"dtype": "BF16", "shape": list(stored.layout.shape)}, stored.layout.dense_bytes
    info = file.header.tensors[name]
    return {"dtype": file.header.codes[name], "shape": list(info.shape)}, info.size_bytes


def _packed_header(header: SafetensorsHeader, stored: dict[str, Stored], size_bytes: int | None) -> bytes:
    """The header of a packed file: its entries in the order of the source, its bytes packed tensors first."""
    entries: dict[str, Any] = {name: {} for name in header.tensors}
    start = 0
    for name in (*stored, *_in_file_order(header, without=stored)):
        if name in stored:
            stop = start + stored[name].layout.size_bytes
            entries[name] = {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        else:
            info = header.tensors[name]
            stop = start + info.size_bytes
            entries[name] = {
                "dtype": header.codes[name],
                "shape": list(info.shape),
                "data_offsets": [start, stop],
            }
        start = stop
    renamed = {name + SUFFIX if name in stored else name: entry for name, entry in entries.items()}
    packing = {
        "format": FORMAT,
        "version": VERSION,
        "tensors": {name: tensor.entry() for name, tensor in stored.items()},
    }
    metadata = {**header.metadata, METADATA_KEY: json.dumps(packing, separators=(",", ":"))}
    return _header_bytes(renamed, metadata, size_bytes)


def _reserved_bytes(header: SafetensorsHeader, candidates: list[str]) -> int:
    """Room for the header, which is written last: what it takes if every candidate is packed and has large numbers."""
    largest = {}
    for name in candidates:
        info = header.tensors[name]
        escapes = min(info.size_bytes // 2, MOST_ESCAPES)
        largest[name] = Stored(Layout(shape=info.shape, base=LAST_BASE, escapes=escapes), (1 << 32) - 1)
    # One that stays dense has its shape in its entry instead of in the metadata.
    return len(_packed_header(header, largest, None)) + HEADER_ALIGNMENT


def _header_bytes(entries: dict[str, Any], metadata: dict[str, str], size_bytes: int | None = None) -> bytes:
    """Length and JSON, filled up with spaces to `size_bytes`, by default to the next multiple of 64."""
    document = {"__metadata__": metadata, **entries} if metadata else entries
    text = json.dumps(document, separators=(",", ":")).encode()
    size_bytes = size_bytes or -(-(8 + len(text)) // HEADER_ALIGNMENT) * HEADER_ALIGNMENT
    if size_bytes - 8 > MOST_HEADER_BYTES:
        raise PackedError(f"the header would take {size_bytes} bytes, above the format's {MOST_HEADER_BYTES}")
    assert len(text) <= size_bytes - 8
    return (size_bytes - 8).to_bytes(8, "little") + text.ljust(size_bytes - 8)


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete, and not at all otherwise."""
    if target.exists():
        raise PackedError(f"{target} exists; choose another name, or remove it first")
    part = target.with_name(target.name + ".part")
    file = part.open("xb")
    try:
        with file:
            yield file
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _bytes_of(plain: torch.Tensor) -> bytearray:
    """The bytes of a flat uint8 tensor, wherever it is."""
    content = bytearray(plain.numel())
    if content:
        torch.frombuffer(content, dtype=torch.uint8).copy_(plain)
    return content
