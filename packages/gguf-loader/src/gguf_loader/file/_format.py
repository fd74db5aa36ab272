"""The facts of the GGUF container: value types, their layout, and the limits that this reader holds a file to.

Source: the GGUF specification (ggml, docs/gguf.md). Everything is little-endian; a big-endian file is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32

ALIGNMENT_KEY = "general.alignment"
ARCHITECTURE_KEY = "general.architecture"
TYPE_KEY = "general.type"
SPLIT_COUNT_KEY = "split.count"
SPLIT_NUMBER_KEY = "split.no"
ORIG_SHAPE_PREFIX = "comfy.gguf.orig_shape."

# What a header may hold. The specification bounds only the key; the others are far above any real file (the largest
# vocabularies take 16 MiB) and keep a damaged or hostile length or count from costing time and memory.
MAX_HEADER_BYTES = 64 << 20
MAX_TENSORS = 1 << 18
MAX_PAIRS = 1 << 18
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 255
MAX_TEXT_BYTES = 16 << 20
MAX_DIMS = 8
MAX_ALIGNMENT = 1 << 24
MAX_STRINGS = 1 << 22
MAX_WEIGHTS = (1 << 63) - 1

# The least bytes a record of each kind can take, to refuse a count before the loop over it begins.
MIN_TENSOR_BYTES = 8 + 4 + 4 + 8
MIN_METADATA_BYTES = 8 + 4 + 1
MIN_STRING_BYTES = 8


class ValueType(IntEnum):
    """Type of a metadata value, with its number in the file format."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


# BOOL is read as a byte, because struct's own "?" takes every non-zero byte for True.
SCALARS: Mapping[ValueType, struct.Struct] = MappingProxyType(
    {
        ValueType.UINT8: struct.Struct("<B"),
        ValueType.INT8: struct.Struct("<b"),
        ValueType.UINT16: struct.Struct("<H"),
        ValueType.INT16: struct.Struct("<h"),
        ValueType.UINT32: struct.Struct("<I"),
        ValueType.INT32: struct.Struct("<i"),
        ValueType.FLOAT32: struct.Struct("<f"),
        ValueType.BOOL: struct.Struct("<B"),
        ValueType.UINT64: struct.Struct("<Q"),
        ValueType.INT64: struct.Struct("<q"),
        ValueType.FLOAT64: struct.Struct("<d"),
    }
)
