"""Metadata arrays that stay in the file until somebody reads them.

A vocabulary holds a million strings, of which opening a checkpoint needs none. The header keeps where an array lies,
and nothing else, so it is small, can be pickled, and holds no file open.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import numpy.typing as npt

from gguf_loader._errors import GgufFormatError, GgufMetadataError, quoted

from ._cursor import U32, U64, Cursor
from ._format import MAX_STRINGS, MIN_STRING_BYTES, SCALARS, ValueType
from ._opening import FileStamp, open_regular

_NUMPY_KINDS = {ValueType.FLOAT32: "<f4", ValueType.FLOAT64: "<f8", ValueType.BOOL: "|b1"}
_NO_INTEGERS = frozenset({ValueType.STRING, *_NUMPY_KINDS})


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufArray:
    """A metadata array: its type and length now, its values on demand.

    Attributes:
        path: absolute path of the file.
        key: the metadata key.
        value_type: type of one value; never `ARRAY`, which GGUF files do not nest.
        count: number of values.
        offset_bytes: where the first value starts.
        size_bytes: bytes of all values, with the length prefixes of strings.
        stamp: the file as it was.
    """

    path: str
    key: str
    value_type: ValueType
    count: int
    offset_bytes: int
    size_bytes: int
    stamp: FileStamp

    def __len__(self) -> int:
        return self.count

    def numpy(self) -> npt.NDArray[np.generic]:
        """The numbers, read now, as a little-endian array of the type in the file.

        Raises:
            GgufMetadataError: the array holds strings.
            GgufFormatError: the file changed, or a bool is neither 0 nor 1.
        """
        return self._decode_numbers(self._read())

    def strings(self) -> list[str]:
        """The strings, read now.

        Raises:
            GgufMetadataError: the array holds numbers.
            GgufFormatError: the file changed, or a string is not UTF-8.
        """
        decoded = []
        for index, data in enumerate(self.raw_strings()):
            try:
                decoded.append(data.decode())
            except UnicodeDecodeError as error:
                raise GgufFormatError(
                    f"not UTF-8: {error.reason}",
                    path=self.path,
                    field=f"metadata {quoted(self.key)}[{index}]",
                    offset_bytes=self.offset_bytes,
                    remedy="read it with raw_strings() if bytes will do",
                ) from error
        return decoded

    def raw_strings(self) -> list[bytes]:
        """The strings, read now, as the bytes that stand in the file.

        Raises:
            GgufMetadataError: the array holds numbers.
            GgufFormatError: the file changed.
        """
        if self.value_type is not ValueType.STRING:
            raise GgufMetadataError(
                f"an array of {self.value_type.name}, not of strings",
                path=self.path,
                field=f"metadata {quoted(self.key)}",
                remedy="read it with numpy()",
            )
        data = self._read()
        found = []
        at = 0
        for _ in repeat(None, self.count):
            start = at + 8
            at = start + int.from_bytes(data[at:start], "little")
            found.append(data[start:at])
        return found

    def tolist(self) -> list[str] | list[int] | list[float] | list[bool]:
        """The values, read now, as Python objects.

        Raises:
            GgufFormatError: as `numpy` and `strings`.
        """
        if self.value_type is ValueType.STRING:
            return self.strings()
        values: list[int] | list[float] | list[bool] = self.numpy().tolist()
        return values

    def integers(self) -> tuple[int, ...]:
        """The integers, read now.

        Raises:
            GgufMetadataError: the array holds something else.
            GgufFormatError: the file changed.
        """
        if self.value_type in _NO_INTEGERS:
            raise GgufMetadataError(
                f"an array of {self.value_type.name}, not of integers",
                path=self.path,
                field=f"metadata {quoted(self.key)}",
            )
        return tuple(self.numpy().tolist())

    def integers_from(self, cursor: Cursor) -> tuple[int, ...]:
        """The integers, taken from the header that is being read.

        Raises:
            GgufFormatError: the array holds something else.
        """
        if self.value_type in _NO_INTEGERS:
            raise cursor.fail(
                f"metadata {quoted(self.key)}",
                self.offset_bytes,
                f"an array of {self.value_type.name}, not of integers",
            )
        data = cursor.buffer[self.offset_bytes : self.offset_bytes + self.size_bytes]
        return tuple(self._decode_numbers(data).tolist())

    def _read(self) -> bytes:
        with open_regular(self.path) as file:
            self.stamp.check(file.fileno(), self.path)
            file.seek(self.offset_bytes)
            return file.read(self.size_bytes)

    def _decode_numbers(self, data: bytes) -> npt.NDArray[np.generic]:
        if self.value_type is ValueType.STRING:
            raise GgufMetadataError(
                "an array of strings, not of numbers",
                path=self.path,
                field=f"metadata {quoted(self.key)}",
                remedy="read it with strings()",
            )
        if self.value_type is ValueType.BOOL and data.translate(None, b"\x00\x01"):
            raise GgufFormatError(
                "an array of bools with a byte that is neither 0 nor 1",
                path=self.path,
                field=f"metadata {quoted(self.key)}",
                offset_bytes=self.offset_bytes,
            )
        kind = _NUMPY_KINDS.get(self.value_type)
        if kind is None:
            code = SCALARS[self.value_type]
            kind = f"<{'i' if self.value_type.name.startswith('INT') else 'u'}{code.size}"
        return np.frombuffer(data, dtype=np.dtype(kind))


def skip_array(cursor: Cursor, key: str, stamp: FileStamp) -> GgufArray:
    """Step over the array at the cursor, having checked that all of it lies in the file.

    Raises:
        GgufFormatError: nested, of an unknown type, or longer than the file.
    """
    field = f"metadata {quoted(key)}"
    at = cursor.offset
    value_type = value_type_at(cursor, f"{field} array type")
    if value_type is ValueType.ARRAY:
        raise cursor.fail(f"{field} array type", at, "an array of arrays, which GGUF readers do not accept")
    text = value_type is ValueType.STRING
    width = MIN_STRING_BYTES if text else SCALARS[value_type].size
    room = (cursor.size - cursor.offset) // width
    count = cursor.count(
        U64, f"{field} array count", most=min(room, MAX_STRINGS) if text else room, unit=f"values of {value_type.name}"
    )
    start = cursor.offset
    if text:
        _skip_strings(cursor, field, count)
    else:
        cursor.offset = start + count * width
        if cursor.offset > cursor.size:
            raise cursor.ends_inside(field, start)
    return GgufArray(
        path=cursor.path,
        key=key,
        value_type=value_type,
        count=count,
        offset_bytes=start,
        size_bytes=cursor.offset - start,
        stamp=stamp,
    )


def value_type_at(cursor: Cursor, field: str) -> ValueType:
    """The value type at the cursor.

    Raises:
        GgufFormatError: no value type has the number.
    """
    at = cursor.offset
    number = int(cursor.number(U32, field))
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.fail(field, at, f"unknown value type {number}") from None


def _skip_strings(cursor: Cursor, field: str, count: int) -> None:
    # The only loop of a header read that runs once per vocabulary entry: no check inside, since a length that leads out
    # of the file makes the next unpacking fail, and the last one is checked below.
    length_at = U64.unpack_from
    buffer = cursor.buffer
    at = cursor.offset
    try:
        for _ in repeat(None, count):
            at += length_at(buffer, at)[0] + 8
    except (struct.error, OverflowError):
        at = cursor.size + 1
    if at > cursor.size:
        lost = _first_lost_string(cursor)
        if cursor.size < cursor.file_size:
            raise cursor.ends_inside(f"{field} array", lost)
        raise cursor.fail(f"{field} array", lost, f"the string here, one of {count}, leads past the end of the file")
    cursor.offset = at


def _first_lost_string(cursor: Cursor) -> int:
    at = cursor.offset
    while at + 8 <= cursor.size:
        end = at + 8 + U64.unpack_from(cursor.buffer, at)[0]
        if end > cursor.size:
            break
        at = end
    return at
