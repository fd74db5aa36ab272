"""A cursor over the header bytes: every read is bounds-checked and every complaint names its field and offset."""

from __future__ import annotations

import mmap
import struct

from gguf_loader._errors import GgufFormatError

from ._format import MAX_HEADER_BYTES

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


class Cursor:
    """Reads little-endian fields one after the other.

    Attributes:
        buffer: the file, mapped, or its bytes.
        file_size: bytes of the file.
        size: bytes that the header may take, at most those of the file.
        offset: where the next field starts.
        path: the file's name, for complaints.
    """

    __slots__ = ("buffer", "file_size", "offset", "path", "size")

    def __init__(self, buffer: mmap.mmap | bytes, path: str) -> None:
        self.buffer = buffer
        self.file_size = len(buffer)
        self.size = min(self.file_size, MAX_HEADER_BYTES)
        self.offset = 0
        self.path = path

    def fail(self, field: str, offset: int, reason: str, remedy: str = "") -> GgufFormatError:
        """The error to raise for a field that starts at `offset`."""
        return GgufFormatError(
            reason,
            remedy=remedy or "the file is damaged or incomplete: fetch or convert it again",
            path=self.path,
            field=field,
            offset_bytes=offset,
        )

    def ends_inside(self, field: str, offset: int) -> GgufFormatError:
        """The error to raise for a field that leads past the end of the file, or of what a header may take."""
        if self.size < self.file_size:
            return self.fail(field, offset, f"the header is longer than {self.size >> 20} MiB")
        return self.fail(field, offset, f"the file ends at byte {self.size}, inside this field")

    def number(self, code: struct.Struct, field: str) -> int | float:
        """The number at the cursor.

        Raises:
            GgufFormatError: the file ends inside it.
        """
        at = self.offset
        end = at + code.size
        if end > self.size:
            raise self.ends_inside(field, at)
        self.offset = end
        value: int | float = code.unpack_from(self.buffer, at)[0]
        return value

    def count(self, code: struct.Struct, field: str, *, most: int, unit: str) -> int:
        """An unsigned number that may not exceed `most`.

        Raises:
            GgufFormatError: it does, or the file ends inside it.
        """
        at = self.offset
        value = int(self.number(code, field))
        if value > most:
            raise self.fail(field, at, f"{value} {unit}, where at most {most} are possible")
        return value

    def raw(self, field: str, limit: int) -> bytes:
        """The bytes of a length-prefixed string.

        Raises:
            GgufFormatError: it is longer than `limit` bytes or than the rest of the file.
        """
        at = self.offset
        start = at + U64.size
        if start > self.size:
            raise self.ends_inside(f"{field} length", at)
        length: int = U64.unpack_from(self.buffer, at)[0]
        if length > limit:
            raise self.fail(f"{field} length", at, f"{length} bytes, where at most {limit} are allowed")
        if length > self.size - start and self.size < self.file_size:
            raise self.ends_inside(field, at)
        if length > self.size - start:
            raise self.fail(f"{field} length", at, f"{length} bytes, but the file has only {self.size - start} left")
        self.offset = start + length
        return self.buffer[start : self.offset]

    def text(self, field: str, limit: int) -> str:
        """A length-prefixed UTF-8 string.

        Raises:
            GgufFormatError: it does not fit, or is not UTF-8.
        """
        at = self.offset
        data = self.raw(field, limit)
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.fail(field, at + U64.size + error.start, f"not UTF-8: {error.reason}") from error
