"""The ggml tensor types: what one block of each is, in weights and in bytes.

The table is this package's own statement of the format (ggml `ggml-common.h`, GGUF specification), so that reading a
header does not import the `gguf` package, which takes longer than reading the file. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ._errors import GgufTypeError, quoted


@dataclass(frozen=True, slots=True)
class GgmlType:
    """One ggml tensor type.

    Attributes:
        name: the ggml name, such as `Q4_K`.
        id: the number that stands in a GGUF tensor record.
        block_size: weights in a block; 1 for a plain number.
        type_size: bytes of a block.
    """

    name: str
    id: int
    block_size: int
    type_size: int

    @property
    def is_quantized(self) -> bool:
        """Whether weights share a block, so that no torch dtype can hold them."""
        return self.block_size > 1

    def size_bytes(self, weights: int) -> int:
        """Bytes of so many weights.

        >>> type_by_name("Q4_K").size_bytes(512)
        288

        Raises:
            GgufTypeError: `weights` is negative or not a whole number of blocks.
        """
        blocks, rest = divmod(weights, self.block_size)
        if rest or weights < 0:
            raise GgufTypeError(
                f"{weights} weights are not a whole number of {self.name} blocks of {self.block_size}",
                remedy="check the shape: the last dimension of a quantised tensor is a multiple of the block",
            )
        return blocks * self.type_size

    def __str__(self) -> str:
        return self.name


_ALL = (
    GgmlType("F32", 0, 1, 4),
    GgmlType("F16", 1, 1, 2),
    GgmlType("Q4_0", 2, 32, 18),
    GgmlType("Q4_1", 3, 32, 20),
    GgmlType("Q5_0", 6, 32, 22),
    GgmlType("Q5_1", 7, 32, 24),
    GgmlType("Q8_0", 8, 32, 34),
    GgmlType("Q8_1", 9, 32, 36),
    GgmlType("Q2_K", 10, 256, 84),
    GgmlType("Q3_K", 11, 256, 110),
    GgmlType("Q4_K", 12, 256, 144),
    GgmlType("Q5_K", 13, 256, 176),
    GgmlType("Q6_K", 14, 256, 210),
    GgmlType("Q8_K", 15, 256, 292),
    GgmlType("IQ2_XXS", 16, 256, 66),
    GgmlType("IQ2_XS", 17, 256, 74),
    GgmlType("IQ3_XXS", 18, 256, 98),
    GgmlType("IQ1_S", 19, 256, 50),
    GgmlType("IQ4_NL", 20, 32, 18),
    GgmlType("IQ3_S", 21, 256, 110),
    GgmlType("IQ2_S", 22, 256, 82),
    GgmlType("IQ4_XS", 23, 256, 136),
    GgmlType("I8", 24, 1, 1),
    GgmlType("I16", 25, 1, 2),
    GgmlType("I32", 26, 1, 4),
    GgmlType("I64", 27, 1, 8),
    GgmlType("F64", 28, 1, 8),
    GgmlType("IQ1_M", 29, 256, 56),
    GgmlType("BF16", 30, 1, 2),
    GgmlType("TQ1_0", 34, 256, 54),
    GgmlType("TQ2_0", 35, 256, 66),
    GgmlType("MXFP4", 39, 32, 17),
    GgmlType("NVFP4", 40, 64, 36),
    GgmlType("Q1_0", 41, 128, 18),
    GgmlType("Q2_0", 42, 64, 18),
)

_REMOVED = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

GGML_TYPES: Mapping[str, GgmlType] = MappingProxyType({kind.name: kind for kind in _ALL})
"""Every type of the format by its name."""

_BY_ID = {kind.id: kind for kind in _ALL}


def type_by_id(number: int) -> GgmlType:
    """The type with this number in the file format.

    >>> type_by_id(12)
    GgmlType(name='Q4_K', id=12, block_size=256, type_size=144)

    Raises:
        GgufTypeError: no type has the number, or ggml removed it.
    """
    found = _BY_ID.get(number)
    if found is not None:
        return found
    if number in _REMOVED:
        raise GgufTypeError(
            f"ggml type {number} ({_REMOVED[number]}) was removed from the format",
            remedy="convert the original checkpoint again with a current converter",
        )
    raise GgufTypeError(
        f"unknown ggml type {number}",
        remedy="the file is damaged, or written by a fork or a newer converter that this release does not know",
    )


def type_by_name(name: str) -> GgmlType:
    """The type with this ggml name, case and all.

    Raises:
        GgufTypeError: no type has the name.
    """
    found = GGML_TYPES.get(name)
    if found is None:
        raise GgufTypeError(f"unknown ggml type {quoted(name)}", remedy=f"one of {', '.join(GGML_TYPES)}")
    return found
