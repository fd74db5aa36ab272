"""GGUF files written byte by byte, so that a test can put anything anywhere."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

F32, Q8_0 = 0, 8
U8, I8, U16, I16, U32, I32, FLOAT32, BOOL, STRING, ARRAY, U64, I64, FLOAT64 = range(13)
CODES = {
    U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", FLOAT32: "f", BOOL: "?", U64: "Q", I64: "q", FLOAT64: "d"
}  # fmt: skip


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def value(kind: int, content: object) -> bytes:
    """A value as it stands behind its type: a number, or a string."""
    if kind == STRING:
        assert isinstance(content, str | bytes)
        return string(content)
    return struct.pack("<" + CODES[kind], content)


def array(kind: int, contents: Sequence[object], *, count: int | None = None) -> bytes:
    head = struct.pack("<IQ", kind, len(contents) if count is None else count)
    return head + b"".join(value(kind, content) for content in contents)


def pair(key: str | bytes, kind: int, content: object) -> bytes:
    """One key-value pair; `content` of an ARRAY is its bytes, made by `array`."""
    payload = content if isinstance(content, bytes) and kind == ARRAY else value(kind, content)
    assert isinstance(payload, bytes)
    return string(key) + struct.pack("<I", kind) + payload


@dataclass
class Tensor:
    """One tensor record with its bytes; `dims` in ggml order, the fastest first."""

    name: str | bytes = "weight"
    dims: Sequence[int] = (4,)
    kind: int = F32
    data: bytes = bytes(16)
    offset: int | None = None
    n_dims: int | None = None


@dataclass
class File:
    """A GGUF file in parts, every one of which a test may falsify."""

    magic: bytes = b"GGUF"
    version: int = 3
    pairs: list[bytes] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    alignment: int = 32
    pair_count: int | None = None
    tensor_count: int | None = None

    def head(self) -> bytes:
        """Everything before the padding of the data section."""
        pair_count = len(self.pairs) if self.pair_count is None else self.pair_count
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        parts = [self.magic, struct.pack("<IQQ", self.version, tensor_count, pair_count), *self.pairs]
        offset = 0
        for tensor in self.tensors:
            n_dims = len(tensor.dims) if tensor.n_dims is None else tensor.n_dims
            at = offset if tensor.offset is None else tensor.offset
            dims = b"".join(struct.pack("<Q", dim % (1 << 64)) for dim in tensor.dims)
            parts += [string(tensor.name), struct.pack("<I", n_dims), dims, struct.pack("<IQ", tensor.kind, at)]
            offset += self._padded(len(tensor.data))
        return b"".join(parts)

    def bytes(self) -> bytes:
        head = self.head()
        data = b"".join(tensor.data.ljust(self._padded(len(tensor.data)), b"\0") for tensor in self.tensors)
        return (head.ljust(self._padded(len(head)), b"\0") if self.tensors else head) + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.bytes())
        return path

    def _padded(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment


def rich() -> File:
    """A small file that has something of everything: all value types, arrays, and several tensors."""
    scalars = {
        U8: 200, I8: -100, U16: 60_000, I16: -30_000, U32: 4_000_000_000, I32: -2_000_000_000, FLOAT32: 0.1, BOOL: True,
        STRING: "snö ☃", U64: 2**63 + 1, I64: -(2**62), FLOAT64: 0.1,
    }  # fmt: skip
    pairs = [pair("general.architecture", STRING, "flux"), pair("general.alignment", U32, 32)]
    pairs += [pair(f"one.{kind}", kind, content) for kind, content in scalars.items()]
    pairs += [pair(f"many.{kind}", ARRAY, array(kind, [content] * 3)) for kind, content in scalars.items()]
    pairs.append(pair("comfy.gguf.orig_shape.patch", ARRAY, array(I32, [2, 3, 1, 2, 2])))
    tensors = [
        Tensor("norm", (4,), F32, struct.pack("<4f", 1, 2, 3, 4)),
        Tensor("patch", (24,), F32, struct.pack("<24f", *range(24))),
        Tensor("linear", (64, 2), Q8_0, bytes(range(136))),
        Tensor("deep", (2, 1, 2, 1, 3), F32, struct.pack("<12f", *range(12))),
        Tensor("scalar", (), F32, struct.pack("<f", 7)),
    ]
    return File(pairs=pairs, tensors=tensors)
