"""The moves that dequantisation is made of: bytes in wide lanes, planes of bits, tables of bytes.

A block is a row of bytes. What makes eager torch fast on it is never to touch single bytes: mask and shift eight at a
time as int64, put planes side by side sixteen at a time, and turn bits into bytes by a table of 8-byte entries.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._scratch import Scratch

LOW_NIBBLES = 0x0F0F0F0F0F0F0F0F
LOW_PAIRS = 0x0303030303030303
LOW_BITS = 0x0101010101010101


class Lanes:
    """Working buffers of one dequantisation on one device, and the moves between them.

    Every method writes into a named buffer of the scratch; a name stays valid until it is used again.
    """

    def __init__(self, scratch: Scratch, device: torch.device) -> None:
        self._scratch = scratch
        self.device = device
        # Moving 16 bytes as one element is twice as fast as two of 8; not every other backend has complex128.
        self._widest = torch.complex128 if device.type == "cpu" else torch.int64

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
        """An uninitialised contiguous buffer."""
        return self._scratch.take(name, shape, dtype, self.device)

    def gather(self, name: str, source: Tensor) -> Tensor:
        """The columns of `source` (rows, bytes), made contiguous."""
        out = self.take(name, tuple(source.shape), source.dtype)
        return out.copy_(source)

    def halves(self, name: str, source: Tensor) -> Tensor:
        """float16 numbers that lie in the bytes of `source` (rows, 2 x numbers), as float32."""
        numbers = source.view(torch.float16)
        return self.take(name, tuple(numbers.shape), torch.float32).copy_(numbers)

    def floats(self, name: str, source: Tensor) -> Tensor:
        """Integers as float32."""
        return self.take(name, tuple(source.shape), torch.float32).copy_(source)

    def integers(self, name: str, source: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
        """Integers in a wider integer dtype."""
        return self.take(name, tuple(source.shape), dtype).copy_(source)

    def bits(self, name: str, source: Tensor, shift: int, mask: int) -> Tensor:
        """`(source >> shift) & mask` in lanes of 8 bytes; a negative shift goes left.

        Args:
            name: buffer of the result.
            source: contiguous bytes, a multiple of 8 of them.
            shift: bits; what crosses from one byte into the next has to fall to the mask.
            mask: the wanted bits of each of the eight bytes.
        """
        lanes = source.view(-1).view(torch.int64)
        out = self.take(name, tuple(source.shape))
        wide = out.view(-1).view(torch.int64)
        if shift > 0:
            torch.bitwise_right_shift(lanes, shift, out=wide)
            wide.bitwise_and_(mask)
        elif shift < 0:
            torch.bitwise_left_shift(lanes, -shift, out=wide)
            wide.bitwise_and_(mask)
        else:
            torch.bitwise_and(lanes, mask, out=wide)
        return out

    def interleave(self, name: str, planes: Sequence[Tensor], run: int) -> Tensor:
        """Runs of `run` bytes, one of each plane in turn.

        Args:
            name: buffer of the result.
            planes: contiguous byte tensors of the same size.
            run: bytes; a multiple of 8.

        Returns:
            uint8 of shape (runs, planes, run).
        """
        wide = self._widest if run % 16 == 0 else torch.int64
        lanes = [plane.view(-1).view(wide).view(-1, run // wide.itemsize) for plane in planes]
        out = self.take(name, (lanes[0].shape[0], len(planes), run))
        torch.stack(lanes, 1, out=out.view(wide))
        return out

    def lookup(self, name: str, table: Tensor, index: Tensor) -> Tensor:
        """The bytes of a table of int16, int32 or int64 entries.

        Args:
            name: buffer of the result.
            table: 1-D; the bytes of an entry are the weights that it stands for.
            index: contiguous int32 within the table.

        Returns:
            int8 of shape (*index.shape, entry bytes).
        """
        out = self.take(name, (index.numel(),), table.dtype)
        torch.index_select(table, 0, index.view(-1), out=out)
        return out.view(torch.int8).view(*index.shape, table.dtype.itemsize)


def or_(target: Tensor, other: Tensor) -> None:
    """`target |= other` in lanes of 8 bytes."""
    target.view(-1).view(torch.int64).bitwise_or_(other.view(-1).view(torch.int64))


def scaled(weights: Tensor, quants: Tensor, scale: Tensor) -> None:
    """`weights = quants * scale`.

    Args:
        weights: contiguous float32 result.
        quants: as many int8 or uint8.
        scale: one factor for each of its rows' share of the weights, of any shape.
    """
    runs = weights.view(scale.numel(), -1)
    runs.copy_(quants.view(runs.shape))
    runs.mul_(scale.view(-1, 1))
