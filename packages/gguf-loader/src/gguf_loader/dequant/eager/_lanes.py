"""The moves that dequantisation is made of: bytes in wide lanes, planes of bits, tables of bytes.

A block is a row of bytes. What makes eager torch fast on it is never to touch single bytes: mask and shift eight at a
time as int64, put planes side by side sixteen at a time, and turn bits into bytes by tables whose entries hold several.
Away from the CPU what counts is the number of operations: there a move is one operation over views, where it can be.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gguf_loader._scratch import Scratch

LOW_NIBBLES = 0x0F0F0F0F0F0F0F0F
LOW_PAIRS = 0x0303030303030303
LOW_BITS = 0x0101010101010101

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Lanes:
    """Working buffers of one dequantisation on one device, and the moves between them.

    Every method writes into a named buffer of the scratch; a name stays valid until it is used again. "Lanes" are a 1-D
    int64 tensor of bytes, eight at a time.
    """

    def __init__(self, scratch: Scratch, device: torch.device) -> None:
        self._scratch = scratch
        self.device = device
        # Moving 16 bytes as one element is twice as fast as two of 8; not every other backend has complex128.
        self._widest = torch.complex128 if device.type == "cpu" else torch.int64

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
        """An uninitialised contiguous buffer."""
        return self._scratch.take(name, shape, dtype, self.device)

    def table(self, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """A constant of the format, `make(*arguments)`, on this device.

        `make` is cached by its module: on the CPU its tensor is the table itself, and only other devices need a copy,
        which goes with the scratch.
        """
        if self.device.type == "cpu":
            return make(*arguments)
        return self._scratch.constant(make, arguments, self.device)

    def column(self, values: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A constant (values, 1)."""
        return self.table(_column, values, dtype)

    def gather(self, name: str, source: Tensor) -> Tensor:
        """The columns of `source` (rows, columns), made contiguous."""
        return self.take(name, tuple(source.shape), source.dtype).copy_(source)

    def gather_lanes(self, name: str, source: Tensor) -> Tensor:
        """The bytes of `source` (rows, a multiple of 8), as lanes."""
        self.gather(name, source)
        return self.take(name, (source.numel() // 8,), torch.int64)

    def halves(self, name: str, source: Tensor) -> Tensor:
        """The float16 number in the two bytes of each row of `source`, as float32 (rows, 1)."""
        numbers = source.view(torch.float16)
        return self.take(name, tuple(numbers.shape), torch.float32).copy_(numbers)

    def floats(self, name: str, source: Tensor) -> Tensor:
        """Integers as float32."""
        return self.take(name, tuple(source.shape), torch.float32).copy_(source)

    def integers(self, name: str, source: Tensor) -> Tensor:
        """Integers as int32."""
        return self.take(name, tuple(source.shape), torch.int32).copy_(source)

    def bits(self, name: str, lanes: Tensor, shift: int, mask: int | None = None) -> Tensor:
        """`(lanes >> shift) & mask` as lanes; a negative shift goes left.

        Args:
            name: buffer of the result.
            lanes: the bytes.
            shift: bits. What crosses from one byte into the next has to fall to this mask or a later one.
            mask: the wanted bits of each of the eight bytes.
        """
        out = self.take(name, tuple(lanes.shape), torch.int64)
        if shift == 0 and mask is not None:
            return torch.bitwise_and(lanes, mask, out=out)
        if shift > 0:
            torch.bitwise_right_shift(lanes, shift, out=out)
        else:
            torch.bitwise_left_shift(lanes, -shift, out=out)
        return out if mask is None else out.bitwise_and_(mask)

    def interleave(self, name: str, planes: Sequence[Tensor], run: int) -> Tensor:
        """Runs of `run` bytes, one of each plane in turn.

        Args:
            name: buffer of the result.
            planes: as many lanes each.
            run: bytes; a multiple of 8.

        Returns:
            lanes.
        """
        wide = self._widest if run % 16 == 0 else torch.int64
        each = (planes[0].shape[0] * 8 // run, run // wide.itemsize)
        out = self.take(name, (each[0], len(planes), each[1]), wide)
        torch.stack([plane.view(wide).view(each) for plane in planes], 1, out=out)
        return self.take(name, (planes[0].shape[0] * len(planes),), torch.int64)

    def fields(self, name: str, source: Tensor, run: int, shifts: tuple[int, ...], mask: int) -> Tensor:
        """`(byte >> shift) & mask`: each run of bytes for the first shift, then again for the second, and so on.

        Args:
            name: buffer of the result; on the CPU `x` and `plane0` onwards are written too.
            source: bytes (rows, a multiple of `run`), columns of aligned blocks.
            run: bytes; on the CPU a multiple of 8.
            shifts: bits.
            mask: the wanted bits of a byte.

        Returns:
            lanes.
        """
        if self.device.type == "cpu":
            x = self.gather_lanes("x", source)
            planes = [self.bits(f"plane{i}", x, shift, mask * LOW_BITS) for i, shift in enumerate(shifts)]
            return self.interleave(name, planes, run)
        wide = _INTEGERS[math.gcd(8, source.storage_offset(), source.stride(0), run)]
        runs = source.view(wide).view(source.shape[0], -1, 1, run // wide.itemsize)
        out = self.take(name, (*runs.shape[:2], len(shifts), runs.shape[3]), wide)
        torch.bitwise_right_shift(runs, self.column(shifts, wide), out=out)
        lanes = self.take(name, (source.numel() * len(shifts) // 8,), torch.int64)
        return lanes.bitwise_and_(mask * LOW_BITS)

    def numbers(self, name: str, source: Tensor, signs: tuple[int, ...]) -> Tensor:
        """The float16 numbers in the columns of `source`, each times its sign, as float32 (numbers, rows, 1)."""
        halves = source.view(torch.float16).t()
        out = self.take(name, tuple(halves.shape), torch.float32)
        return torch.mul(halves, self.column(signs, torch.float32), out=out).unsqueeze(-1)

    def lookup(self, name: str, table: Tensor, index: Tensor) -> Tensor:
        """Entries of a table of int32 or int64, whose bytes are weights.

        Args:
            name: buffer of the result.
            table: 1-D.
            index: contiguous int32 within the table; an even number of them.

        Returns:
            lanes.
        """
        out = self.take(name, (index.numel(),), table.dtype)
        torch.index_select(table, 0, index.view(-1), out=out)
        return self.take(name, (index.numel() * table.dtype.itemsize // 8,), torch.int64)


@functools.cache
def _column(values: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


def scaled(weights: Tensor, quants: Tensor, scale: Tensor, offset: Tensor | None = None) -> None:
    """`weights = quants * scale + offset`, rounded to the dtype of the weights at the end.

    Where there is an offset, the product has to be exact in float32: then it makes no difference whether a device
    rounds it before the sum.

    Args:
        weights: contiguous result, float32 on the CPU.
        quants: one for each weight, in their order.
        scale: contiguous; one factor for each of its equal shares of the weights.
        offset: as many, or None for nothing.
    """
    runs = weights.view(scale.numel(), -1)
    quants, scale = quants.view(runs.shape), scale.view(-1, 1)
    if weights.device.type == "cpu":
        # Twice as fast as a product of two types, which a CPU does number by number.
        runs.copy_(quants).mul_(scale)
        if offset is not None:
            runs.add_(offset.view(-1, 1))
    elif offset is None:
        torch.mul(quants, scale, out=runs)
    else:
        torch.addcmul(offset.view(-1, 1), quants, scale, out=runs)


def unsigned(lanes: Tensor) -> Tensor:
    """The raw bytes of lanes."""
    return lanes.view(torch.uint8)


def signed(lanes: Tensor, bias: int = 0) -> Tensor:
    """The bytes of lanes as int8, less a bias, which is taken off in place."""
    small = lanes.view(torch.uint8)
    return (small.sub_(bias) if bias else small).view(torch.int8)
