"""Packed files: safetensors whose large bf16 tensors are stored as w3, read one tensor at a time.

A packed tensor ``NAME`` is stored as the tensor ``NAME.w3``: uint8, the buffer of `_format`. What else has to be known
stands in the metadata of the file under ``torchspan.packed``, as JSON::

    {"format": "w3", "version": 1, "tensors": {NAME: {"shape": [...], "base": ..., "escapes": ..., "crc32": ...}}}

`crc32` is that of the buffer. All other tensors and metadata are those of the source. The buffers come first, so that
each starts at a multiple of 16 bytes. Programs that do not know the format find no ``NAME`` and say so.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, cast

import torch
from torch import Tensor

from block_discovery import SafetensorsHeader, open_regular, read_safetensors_header
from device_placement.packed._errors import DamagedPackError, PackedError
from device_placement.packed._format import Layout, check_buffer
from device_placement.packed._tensor import PackedWeight

METADATA_KEY = "torchspan.packed"
SUFFIX = ".w3"
FORMAT = "w3"
VERSION = 1
KNOWN = FORMAT, VERSION


@dataclass(frozen=True, slots=True)
class Stored:
    """A packed tensor in a file: its layout and the checksum of its buffer."""

    layout: Layout
    crc32: int

    def entry(self) -> dict[str, Any]:
        """What the metadata says of it."""
        layout = self.layout
        return {"shape": list(layout.shape), "base": layout.base, "escapes": layout.escapes, "crc32": self.crc32}


class PackedFile(Mapping[str, Tensor]):
    """The tensors of a packed file by the names of its source, each read from the file when it is asked for.

    A packed one is a `PackedWeight`, checked against its checksum; the others are dense. Files without packed tensors
    can be read as well. Not for several threads at a time. Close it, or use it in a `with`.

    Attributes:
        path: the file.
        header: what its header declares.
        stored: its packed tensors by the names of the source.
        metadata: that of the source.

    Args:
        path: a safetensors file.

    Raises:
        HeaderError: it is not safetensors, or damaged.
        NotRegularFileError: it is a folder, a pipe or a device.
        ChangedFileError: it was replaced while it was opened.
        PackedError: its packed tensors are of a later version.
        DamagedPackError: header and metadata contradict each other, or the file is too short.
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.header = read_header(self.path)
        self.stored = _stored(self.path, self.header)
        self.metadata = MappingProxyType({k: v for k, v in self.header.metadata.items() if k != METADATA_KEY})
        # The name of each tensor in the file.
        self._names = {self._source_name(name): name for name in self.header.tensors}
        self._file = cast(BufferedReader, open_regular(self.path, stamp=self.header.stamp))

    def __getitem__(self, name: str) -> Tensor:
        stored = self.stored.get(name)
        raw = self.read(self._names[name])
        if stored is not None:
            return self._packed(name, stored, raw)
        info = self.header.tensors[name]
        dtype = None if info.dtype is None else getattr(torch, info.dtype, None)
        if dtype is None or info.dtype == "float4_e2m1fn_x2":
            raise PackedError(f"{self.path}: tensor {name!r} is {self.header.codes[name]}, which cannot be loaded here")
        if not raw:
            return torch.empty(info.shape, dtype=dtype)
        return torch.frombuffer(raw, dtype=torch.uint8).view(dtype).view(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sizes(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape and bytes in the file of each tensor, by the names of the source, as `discover_names` takes them."""
        found = {}
        for name, in_file in self._names.items():
            info = self.header.tensors[in_file]
            stored = self.stored.get(name)
            found[name] = (info.shape if stored is None else stored.layout.shape), info.size_bytes
        return found

    def close(self) -> None:
        """Close the file; tensors that were read stay."""
        self._file.close()

    def read(self, name: str) -> bytearray:
        """The bytes of a tensor, by its name in the file.

        Raises:
            DamagedPackError: the file ends before.
        """
        raw = bytearray(self.header.tensors[name].size_bytes)
        self._file.seek(self.header.starts[name])
        if self._file.readinto(raw) != len(raw):
            raise DamagedPackError(f"{self.path} became shorter while it was read; copy the file again")
        return raw

    def _source_name(self, name: str) -> str:
        base = name.removesuffix(SUFFIX)
        return base if name.endswith(SUFFIX) and base in self.stored else name

    def _packed(self, name: str, stored: Stored, raw: bytearray) -> PackedWeight:
        buffer = torch.frombuffer(raw, dtype=torch.uint8)
        found = zlib.crc32(raw)
        if found != stored.crc32:
            raise DamagedPackError(
                f"{self.path}: packed tensor {name!r} is damaged (checksum {found:08x}, written was "
                f"{stored.crc32:08x}); copy or pack the file again"
            )
        try:
            check_buffer(buffer, stored.layout)
        except DamagedPackError as error:
            raise DamagedPackError(f"{self.path}: tensor {name!r}: {error}") from error
        return PackedWeight(buffer, stored.layout)


def read_header(path: Path) -> SafetensorsHeader:
    """The header of a complete safetensors file.

    Raises:
        HeaderError: it is not safetensors, or damaged.
        NotRegularFileError: it is a folder, a pipe or a device.
        DamagedPackError: its end is missing.
        OSError: it cannot be opened.
    """
    header = read_safetensors_header(path)
    if header.missing_bytes:
        raise DamagedPackError(
            f"{path} ends {header.missing_bytes} bytes before its header says; copy or download the file again"
        )
    return header


def _stored(path: Path, header: SafetensorsHeader) -> Mapping[str, Stored]:
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        entry = json.loads(text)
        version = entry["format"], entry["version"]
        tensors = dict(entry["tensors"])
        stored = {name: _stored_tensor(said) for name, said in tensors.items()} if version == KNOWN else {}
    # A number of too many digits, and a layout that cannot be, are ValueErrors.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedPackError(
            f"{path}: the metadata {METADATA_KEY!r} is invalid ({type(error).__name__}: {error!s:.200}); "
            "pack the file again"
        ) from error
    if version != KNOWN:
        raise PackedError(
            f"{path} is packed as {version[0]!r:.40} of version {version[1]!r:.40}, and this release reads "
            f"{FORMAT!r} of version {VERSION}; use a later release"
        )
    for name, tensor in stored.items():
        info = header.tensors.get(name + SUFFIX)
        if info is None or info.dtype != "uint8" or info.shape != (tensor.layout.size_bytes,):
            raise DamagedPackError(
                f"{path}: packed tensor {name!r} needs {tensor.layout.size_bytes} bytes of uint8 named "
                f"{name + SUFFIX!r}, which the file does not have; pack the file again"
            )
        if name in header.tensors:
            raise DamagedPackError(f"{path}: tensor {name!r} is there twice, packed and dense; pack the file again")
    return MappingProxyType(stored)


def _stored_tensor(said: dict[str, Any]) -> Stored:
    layout = Layout(shape=tuple(said["shape"]), base=said["base"], escapes=said["escapes"])
    if type(said["crc32"]) is not int:
        raise TypeError("crc32 is not an integer")
    return Stored(layout, said["crc32"])
