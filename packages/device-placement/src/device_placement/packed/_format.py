"""The format w3: where the planes of one packed bf16 tensor lie in its flat buffer, and what makes a buffer invalid.

A bf16 number is a sign, an exponent of eight bits and seven bits of mantissa. Sign and mantissa look random and are
stored unchanged; exponents of weights have 2.5 to 3 bits of entropy and are stored in three:

| plane   | bytes        | content                                                                   |
|---------|--------------|---------------------------------------------------------------------------|
| low     | 256 a block  | the two low bits of each code, the first weight in the lowest bits        |
| high    | 128 a block  | the third bit of each code                                                |
| starts  | 4 a block    | int32, little endian: how many escapes come before the block              |
| rest    | 1 a weight   | sign (bit 7) and mantissa (bits 0 to 6)                                   |
| escapes | 1 an escape  | the exponent itself, in the order of the weights                          |

Codes 0 to 6 mean the exponents `base` to `base + 6`, the window of seven that holds most weights; code 7 is an escape.
A block is 1024 weights, and the last one is filled up with code 0. `starts` lets every block be decoded by itself. Each
plane begins at a multiple of 16 bytes, so that it can be read by vector loads, and the size of a buffer is one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from device_placement.packed._errors import DamagedPackError, PackedError

BLOCK = 1024
"""Weights that are decoded together."""

ALIGNMENT = 16
"""Each plane starts at a multiple of this many bytes."""

ESCAPE = 7
"""The code of a weight whose exponent is outside the window."""

LAST_BASE = 256 - ESCAPE
"""The highest first exponent of a window of seven."""

MOST_ESCAPES = (1 << 31) - 1
"""What `starts` can count to."""

STRETCH_WEIGHTS = MappingProxyType({"cpu": 1 << 18})
"""Weights that eager torch works on at a time: what fits into the cache of a CPU; 2^24 elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Views of the planes of one buffer: see the module."""

    low: Tensor
    high: Tensor
    starts: Tensor
    rest: Tensor
    escapes: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What has to be known of a packed tensor besides its buffer.

    Attributes:
        shape: of the weights.
        base: first exponent of the window, 0 to 249.
        escapes: weights outside the window.

    Raises:
        PackedError: a number is out of range.

    >>> layout = Layout(shape=(32, 64), base=118, escapes=40)
    >>> layout.numel, layout.dense_bytes, layout.size_bytes
    (2048, 4096, 2880)
    """

    shape: tuple[int, ...]
    base: int
    escapes: int

    def __post_init__(self) -> None:
        for name, value in (("base", self.base), ("escapes", self.escapes), *(("size", size) for size in self.shape)):
            if type(value) is not int or value < 0:
                raise PackedError(f"{name} {value!r} of a packed tensor is not a whole number of 0 or more")
        if self.base > LAST_BASE:
            raise PackedError(f"base {self.base} of a packed tensor is above {LAST_BASE}, where no window of 7 begins")
        if self.escapes > min(self.numel, MOST_ESCAPES):
            raise PackedError(f"a packed tensor of {self.numel} weights cannot have {self.escapes} escapes")

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        """Number of blocks, the last one perhaps not full."""
        return -(-self.numel // BLOCK)

    @property
    def dense_bytes(self) -> int:
        """Bytes of the weights in bf16."""
        return 2 * self.numel

    @property
    def size_bytes(self) -> int:
        """Bytes of the buffer."""
        return _aligned(self._offsets()[-1] + self.escapes)

    def require_size(self, buffer: Tensor) -> None:
        """Refuse what cannot be the buffer of this layout.

        Raises:
            DamagedPackError: it is not contiguous uint8 of `size_bytes`.
        """
        if buffer.dtype != torch.uint8 or buffer.shape != (self.size_bytes,) or not buffer.is_contiguous():
            raise DamagedPackError(
                f"the buffer of a packed tensor of shape {self.shape} with {self.escapes} escapes is uint8 of "
                f"{self.size_bytes} bytes, not {buffer.dtype} of shape {tuple(buffer.shape)}; pack the tensor again"
            )

    def cut(self, buffer: Tensor) -> Planes:
        """The planes of a buffer, as views.

        Raises:
            DamagedPackError: the buffer is not contiguous uint8 of `size_bytes`.
        """
        self.require_size(buffer)
        low, high, starts, rest, escapes = self._offsets()
        return Planes(
            low=buffer[low:high],
            high=buffer[high:starts],
            starts=buffer[starts : starts + 4 * self.blocks].view(torch.int32),
            rest=buffer[rest : rest + self.numel],
            escapes=buffer[escapes : escapes + self.escapes],
        )

    def _offsets(self) -> tuple[int, int, int, int, int]:
        blocks = self.blocks
        starts = (BLOCK // 4 + BLOCK // 8) * blocks
        rest = _aligned(starts + 4 * blocks)
        return 0, BLOCK // 4 * blocks, starts, rest, _aligned(rest + self.numel)


def packed_size(shape: tuple[int, ...], escapes: int) -> int:
    """Bytes of the buffer of a tensor of this shape with so many escapes."""
    return Layout(shape=shape, base=0, escapes=escapes).size_bytes


def check_buffer(buffer: Tensor, layout: Layout) -> None:
    """Refuse a buffer whose planes contradict each other; reads all codes, so call it once, on bytes from outside.

    A buffer that passes decodes to some weights without reading past its planes. Whether they are the weights that
    were packed is what a checksum can say.

    Raises:
        DamagedPackError: the size is wrong, or the escapes of a block are not as many as `starts` says.
    """
    planes = layout.cut(buffer)
    ends = torch.cat([planes.starts, planes.starts.new_full((1,), layout.escapes)])
    counted = [
        codes_of(planes, blocks).view(-1, BLOCK).eq(ESCAPE).sum(1, dtype=torch.int32)
        for blocks in stretches(layout.blocks, buffer.device)
    ]
    expected = torch.cat([ends.new_zeros(1), *counted]).cumsum(0, dtype=torch.int32)
    wrong = ends.ne(expected).nonzero()
    if len(wrong):
        block = int(wrong[0])
        raise DamagedPackError(
            f"a packed tensor of shape {layout.shape} is damaged: the table says that {int(ends[block])} escapes come "
            f"before block {block}, the codes say {int(expected[block])}; pack the tensor again, or copy the file again"
        )


def stretches(blocks: int, device: torch.device) -> Iterator[slice]:
    """Blocks that are worked on at a time."""
    step = STRETCH_WEIGHTS.get(device.type, 1 << 24) // BLOCK
    for first in range(0, blocks, step):
        yield slice(first, min(first + step, blocks))


def codes_of(planes: Planes, blocks: slice) -> Tensor:
    """The codes of some blocks, one byte each."""
    low = planes.low[blocks.start * BLOCK // 4 : blocks.stop * BLOCK // 4].to(torch.int32)
    low = (low | (low << 12)) & 0x000F000F
    low = (low | (low << 6)) & 0x03030303
    high = planes.high[blocks.start * BLOCK // 8 : blocks.stop * BLOCK // 8].to(torch.int64)
    high = (high | (high << 28)) & 0x0000000F0000000F
    high = (high | (high << 14)) & 0x0003000300030003
    high = (high | (high << 7)) & 0x0101010101010101
    return low.view(torch.uint8) | (high << 2).view(torch.uint8)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
