"""An open GGUF file: its header, and its tensors as views of one copy-on-write mapping."""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from gguf_loader._dtypes import NATIVE_DTYPES
from gguf_loader._errors import GgufFormatError, GgufKeyError, quoted

from ._header import GgufHeader, parse_header
from ._opening import FileStamp, open_regular
from ._tensors import TensorInfo

# Linux: <bits/mman-map-flags-generic.h>; Python's mmap module names it from 3.13 on.
_MAP_NORESERVE = 0x4000


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file that is mapped, not read: a page comes from the disk when a tensor over it is used.

    Every process that maps the file shares its pages. The mapping is private: writing to a tensor copies the page and
    never reaches the file. It lives as long as this object or any tensor made by it; there is nothing to close. While
    it lives, the file must not be truncated: the operating system ends a process (SIGBUS) that reads a page which is
    gone. Making a tensor checks that its bytes are still there; using it cannot.

    Attributes:
        header: what the file says of itself.
        mapping: the bytes of the file.
    """

    header: GgufHeader
    mapping: mmap.mmap

    def tensor_bytes(self, name: str) -> torch.Tensor:
        """The stored bytes of a tensor: 1-D uint8, a view of the mapping with a separate storage.

        Raises:
            GgufFormatError: the file was cut since, so that the tensor is gone.
            GgufKeyError: the file has no such tensor.
        """
        tensor = self._tensor(name)
        return self._view(tensor, torch.uint8, tensor.size_bytes)

    def native_tensor(self, name: str) -> torch.Tensor:
        """A tensor whose ggml type is a torch dtype, as a view of the mapping in its own shape.

        Raises:
            GgufFormatError: the file was cut since, so that the tensor is gone.
            GgufKeyError: the file has no such tensor, or it is quantised.
        """
        tensor = self._tensor(name)
        dtype = NATIVE_DTYPES.get(tensor.ggml_type.name)
        if dtype is None:
            raise GgufKeyError(
                f"a {tensor.ggml_type} tensor has no torch dtype",
                path=self.header.path,
                field=f"tensor {quoted(name)}",
                remedy="take tensor_bytes() and dequantise them",
            )
        return self._view(tensor, dtype, tensor.size_bytes // dtype.itemsize).view(tensor.shape)

    def _tensor(self, name: str) -> TensorInfo:
        try:
            return self.header.tensors[name]
        except KeyError:
            raise GgufKeyError("no such tensor", path=self.header.path, field=f"tensor {quoted(name)}") from None

    def _view(self, tensor: TensorInfo, dtype: torch.dtype, count: int) -> torch.Tensor:
        # One storage a tensor, rather than slices of one: pickling or measuring a storage then sees that tensor alone.
        # The alignment of a GGUF file (at least 8) makes every offset good for every dtype.
        start = self.header.data_offset_bytes + tensor.offset_bytes
        if start + tensor.size_bytes > self.mapping.size():
            raise GgufFormatError(
                f"the file was cut to {self.mapping.size()} bytes after it was opened",
                path=self.header.path,
                field=f"tensor {quoted(tensor.name)}",
                remedy="restore the file and open it again",
            )
        return torch.frombuffer(self.mapping, dtype=dtype, count=count, offset=start)


def open_gguf(path: str | PathLike[str]) -> GgufFile:
    """Map a GGUF file and check its header; no weight is read.

    Raises:
        GgufError: as `read_header`.
        OSError: the file cannot be opened or mapped.
    """
    absolute = Path(path).absolute()
    with open_regular(str(absolute)) as file:
        stamp = FileStamp.of(file.fileno())
        if stamp.size_bytes == 0:
            parse_header(b"", str(absolute), stamp)
        mapping = _map_privately(file.fileno())
    return GgufFile(parse_header(mapping, str(absolute), stamp), mapping)


def _map_privately(descriptor: int) -> mmap.mmap:
    if sys.platform == "linux":
        # A plain private mapping reserves memory for a copy of the whole file, and Linux refuses that where the file is
        # larger than RAM and swap: just the checkpoints that this project is for.
        flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
        return mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
