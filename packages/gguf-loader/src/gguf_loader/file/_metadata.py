"""Typed metadata of a GGUF file, and the text view of it that hosts written for safetensors expect."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gguf_loader._errors import GgufMetadataError, quoted

from ._arrays import GgufArray, skip_array, value_type_at
from ._cursor import Cursor
from ._format import MAX_KEY_BYTES, MAX_TEXT_BYTES, SCALARS, ValueType
from ._opening import FileStamp

MetadataValue = int | float | bool | str | GgufArray
"""A metadata value: a Python scalar, or an array that is read on demand."""


class MetadataEntry(NamedTuple):
    """One value with its type in the file and the offset where it starts."""

    value: MetadataValue
    value_type: ValueType
    offset_bytes: int


class GgufMetadata(Mapping[str, MetadataValue]):
    """The key-value pairs of a GGUF header in file order, with the type that each has in the file.

    Scalars are Python values (`int`, `float`, `bool`, `str`); arrays are `GgufArray`.
    """

    __slots__ = ("_entries", "_path")

    def __init__(self, path: str, entries: Mapping[str, MetadataEntry]) -> None:
        self._path = path
        self._entries = dict(entries)

    def __getitem__(self, key: str) -> MetadataValue:
        return self._entries[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"GgufMetadata({self._path!r}, {len(self)} keys)"

    def value_type(self, key: str) -> ValueType:
        """The type of a value in the file: which distinguishes UINT8 from INT64, or FLOAT32 from FLOAT64.

        Raises:
            KeyError: the file has no such key.
        """
        return self._entries[key].value_type

    def value_offset(self, key: str) -> int:
        """Where a value starts in the file, in bytes.

        Raises:
            KeyError: the file has no such key.
        """
        return self._entries[key].offset_bytes

    def text(self, key: str) -> str:
        """The string under a key.

        Raises:
            GgufMetadataError: missing, or not a string.
        """
        value = self._required(key)
        if not isinstance(value, str):
            raise self._mismatch(key, "a string")
        return value

    def integer(self, key: str) -> int:
        """The integer under a key, of whatever width.

        Raises:
            GgufMetadataError: missing, or not an integer (a bool is not one).
        """
        value = self._required(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._mismatch(key, "an integer")
        return value

    def flag(self, key: str) -> bool:
        """The bool under a key.

        Raises:
            GgufMetadataError: missing, or not a bool.
        """
        value = self._required(key)
        if not isinstance(value, bool):
            raise self._mismatch(key, "a bool")
        return value

    def array(self, key: str) -> GgufArray:
        """The array under a key.

        Raises:
            GgufMetadataError: missing, or not an array.
        """
        value = self._required(key)
        if not isinstance(value, GgufArray):
            raise self._mismatch(key, "an array")
        return value

    def host_view(self, *, arrays: bool = False) -> dict[str, str]:
        """The metadata as a safetensors header would hold it: every value as text.

        Strings are kept, numbers and bools become JSON text. A FLOAT32 is written with the fewest digits that give the
        same FLOAT32 again; NaN and the infinities as Python's `json` reads them.

        Args:
            arrays: also read the arrays, as JSON lists. A vocabulary makes this megabytes.

        Raises:
            GgufFormatError: an array cannot be read.
        """
        view = {}
        for key, (value, value_type, _) in self._entries.items():
            if isinstance(value, str):
                view[key] = value
            elif not isinstance(value, GgufArray):
                view[key] = _json_scalar(value, value_type)
            elif arrays:
                view[key] = _json_array(value)
        return view

    def _required(self, key: str) -> MetadataValue:
        try:
            return self._entries[key].value
        except KeyError:
            raise GgufMetadataError(
                "missing",
                path=self._path,
                field=f"metadata {quoted(key)}",
                remedy="the file lacks what this use of it needs; convert it again with a current converter",
            ) from None

    def _mismatch(self, key: str, wanted: str) -> GgufMetadataError:
        return GgufMetadataError(
            f"{self.value_type(key).name}, where {wanted} is needed",
            path=self._path,
            field=f"metadata {quoted(key)}",
            offset_bytes=self.value_offset(key),
        )


def parse_metadata(cursor: Cursor, count: int, stamp: FileStamp) -> GgufMetadata:
    """Read `count` key-value pairs at the cursor.

    Raises:
        GgufFormatError: a key is repeated or malformed, or a value is.
    """
    entries: dict[str, MetadataEntry] = {}
    for index in range(count):
        at = cursor.offset
        key = cursor.text(f"metadata key {index}", MAX_KEY_BYTES)
        if key in entries:
            raise cursor.fail(f"metadata key {index}", at, f"{quoted(key)} appears twice")
        field = f"metadata {quoted(key)}"
        value_type = value_type_at(cursor, f"{field} type")
        value_at = cursor.offset
        entries[key] = MetadataEntry(_value_at(cursor, key, field, value_type, stamp), value_type, value_at)
    return GgufMetadata(cursor.path, entries)


def _value_at(cursor: Cursor, key: str, field: str, value_type: ValueType, stamp: FileStamp) -> MetadataValue:
    if value_type is ValueType.STRING:
        return cursor.text(field, MAX_TEXT_BYTES)
    if value_type is ValueType.ARRAY:
        return skip_array(cursor, key, stamp)
    at = cursor.offset
    number = cursor.number(SCALARS[value_type], field)
    if value_type is not ValueType.BOOL:
        return number
    if number not in (0, 1):
        raise cursor.fail(field, at, f"a bool of {number}, neither 0 nor 1")
    return number == 1


def _json_scalar(value: float, value_type: ValueType) -> str:
    return json.dumps(float(str(np.float32(value))) if value_type is ValueType.FLOAT32 else value)


def _json_array(array: GgufArray) -> str:
    values = array.tolist()
    if array.value_type is ValueType.FLOAT32:
        values = [float(str(value)) for value in array.numpy()]
    return json.dumps(values, ensure_ascii=False)
