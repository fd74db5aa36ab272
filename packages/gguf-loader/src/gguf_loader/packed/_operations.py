"""What torch operations mean on packed weights: the few that blocks can answer, and no other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from gguf_loader._errors import GgufPackedError

from ._blocks import BlockTensor

aten = torch.ops.aten


def rows(self: BlockTensor, start: int, stop: int) -> BlockTensor:
    """Rows `start` to `stop` of dimension 0, sharing the blocks.

    Raises:
        GgufPackedError: a row boundary lies inside a block.
    """
    data = self.packed[_byte_of(self, start) : _byte_of(self, stop)]
    return self.with_blocks(data, (stop - start, *self.shape[1:]))


def _byte_of(self: BlockTensor, row: int) -> int:
    weight = row * math.prod(self.shape[1:])
    kind = self.ggml_type
    if weight % kind.block_size:
        raise GgufPackedError(
            f"row {row} of shape {tuple(self.shape)} starts inside a {kind.name} block of {kind.block_size} weights",
            remedy="cut where a block ends, or slice the result of .dequantize()",
        )
    return weight // kind.block_size * kind.type_size


def _require_first_dim(self: BlockTensor, dim: int, what: str) -> None:
    if dim not in (0, -self.ndim) or self.ndim == 0:
        raise GgufPackedError(
            f"{what} along dimension {dim} would cut blocks apart",
            remedy="only dimension 0 can be cut while packed; call .dequantize() first",
        )


def _detach(self: BlockTensor) -> BlockTensor:
    return self.with_blocks(self.packed)


def _clone(self: BlockTensor, *, memory_format: torch.memory_format | None = None) -> BlockTensor:
    return self.with_blocks(self.packed.clone())


def _to_copy(
    self: BlockTensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> BlockTensor:
    target = self.packed.device if device is None else torch.device(device)
    if dtype is not None and dtype != self.dtype and target == self.packed.device:
        return self.with_blocks(self.packed, dtype=dtype)
    return self.with_blocks(self.packed.to(target, non_blocking=non_blocking, copy=True), dtype=dtype)


def _empty_like(
    self: BlockTensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> BlockTensor:
    return self.with_blocks(torch.empty_like(self.packed, device=device, pin_memory=bool(pin_memory)), dtype=dtype)


def _view(self: BlockTensor, shape: Sequence[int]) -> BlockTensor:
    known = math.prod(size for size in shape if size != -1)
    inferred = tuple(self.numel() // max(known, 1) if size == -1 else size for size in shape)
    if min(inferred, default=0) < 0 or math.prod(inferred) != self.numel():
        raise GgufPackedError(f"shape {tuple(shape)} does not hold the {self.numel()} weights of {tuple(self.shape)}")
    return self.with_blocks(self.packed, inferred)


def _unsqueeze(self: BlockTensor, dim: int) -> BlockTensor:
    if not -self.ndim - 1 <= dim <= self.ndim:
        raise IndexError(f"dimension {dim} is out of range for {self.ndim} dimensions and a new one")
    at = dim % (self.ndim + 1)
    return self.with_blocks(self.packed, (*self.shape[:at], 1, *self.shape[at:]))


def _slice(
    self: BlockTensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> BlockTensor:
    first, stop, _ = slice(start, end).indices(self.shape[dim])
    if (first, stop, step) == (0, self.shape[dim], 1):
        return _detach(self)
    _require_first_dim(self, dim, "a slice")
    if step != 1:
        raise GgufPackedError(
            f"a slice of step {step} would copy rows",
            remedy="slice with step 1 while packed, or slice the result of .dequantize()",
        )
    return rows(self, first, max(first, stop))


def _select(self: BlockTensor, dim: int, index: int) -> BlockTensor:
    _require_first_dim(self, dim, "an index")
    if not -self.shape[0] <= index < self.shape[0]:
        raise IndexError(f"index {index} is out of range for dimension 0 of size {self.shape[0]}")
    at = index % self.shape[0]
    return _view(rows(self, at, at + 1), self.shape[1:])


def _split(self: BlockTensor, split_size: int, dim: int = 0) -> list[BlockTensor]:
    _require_first_dim(self, dim, "a split")
    if split_size < 1:
        raise GgufPackedError(
            f"a tensor cannot be split into pieces of {split_size} rows", remedy="pass a size of 1 or more"
        )
    total = self.shape[0]
    return [rows(self, start, min(start + split_size, total)) for start in range(0, total, split_size)]


def _split_with_sizes(self: BlockTensor, split_sizes: Sequence[int], dim: int = 0) -> list[BlockTensor]:
    _require_first_dim(self, dim, "a split")
    if sum(split_sizes) != self.shape[0] or min(split_sizes, default=0) < 0:
        raise GgufPackedError(f"sizes {list(split_sizes)} do not sum to the {self.shape[0]} rows of the tensor")
    ends = [sum(split_sizes[: i + 1]) for i in range(len(split_sizes))]
    return [rows(self, end - size, end) for end, size in zip(ends, split_sizes, strict=True)]


def _unbind(self: BlockTensor, dim: int = 0) -> list[BlockTensor]:
    _require_first_dim(self, dim, "unbind")
    return [_select(self, 0, index) for index in range(self.shape[0])]


def _cat(tensors: Sequence[BlockTensor], dim: int = 0) -> BlockTensor:
    first = tensors[0]
    kinds = {(getattr(tensor, "ggml_type", None), tensor.shape[1:], tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        raise GgufPackedError(
            "tensors of different type, dtype or row shape cannot be joined while packed",
            remedy="call .dequantize() on each first",
        )
    _require_first_dim(first, dim, "a concatenation")
    data = torch.cat([tensor.packed for tensor in tensors])
    return first.with_blocks(data, (sum(tensor.shape[0] for tensor in tensors), *first.shape[1:]))


def _copy_(self: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    kind, source_kind = getattr(self, "ggml_type", None), getattr(source, "ggml_type", None)
    if kind is None:
        packed: Any = source
        fits = self.shape == source.shape and self.is_contiguous() and self.device == source.device
        if fits and self.dtype.is_floating_point:
            packed.dequantize(out=self.detach())
        else:
            self.copy_(packed.dequantize(torch.float32))
        return self
    if kind != source_kind or self.shape != source.shape:
        raise GgufPackedError(
            f"{source_kind or source.dtype} weights of shape {tuple(source.shape)} cannot be copied into packed {kind} "
            f"weights of shape {tuple(self.shape)}",
            remedy="replace the packed tensor by the other one; nothing is quantised here",
        )
    target: Any = self
    target.packed.copy_(source.packed, non_blocking=non_blocking)  # type: ignore[attr-defined]
    return self


def _equal(self: Any, other: Any) -> bool:
    """Same shape and weights: by the blocks where both have the same ones, else by the weights that they stand for."""
    if self.shape != other.shape:
        return False
    types = [getattr(tensor, "ggml_type", None) for tensor in (self, other)]
    if types[0] == types[1] and torch.equal(self.packed, other.packed):
        return True
    dense = [
        tensor if kind is None else tensor.dequantize(self.dtype)
        for tensor, kind in zip((self, other), types, strict=True)
    ]
    return torch.equal(*dense)


def _is_pinned(self: BlockTensor, device: torch.device | None = None) -> bool:
    return self.packed.is_pinned()


def _pin_memory(self: BlockTensor, device: torch.device | None = None) -> BlockTensor:
    return self.with_blocks(self.packed.pin_memory())


HANDLERS: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {
        aten.detach.default: _detach,
        aten.alias.default: _detach,
        aten.clone.default: _clone,
        aten._to_copy.default: _to_copy,
        aten.empty_like.default: _empty_like,
        aten.view.default: _view,
        aten._unsafe_view.default: _view,
        aten.unsqueeze.default: _unsqueeze,
        aten.slice.Tensor: _slice,
        aten.select.int: _select,
        aten.split.Tensor: _split,
        aten.split_with_sizes.default: _split_with_sizes,
        aten.unbind.int: _unbind,
        aten.cat.default: _cat,
        aten.copy_.default: _copy_,
        aten.equal.default: _equal,
        aten.is_pinned.default: _is_pinned,
        aten._pin_memory.default: _pin_memory,
    }
)
"""Every operation that packed weights answer; the rest is refused by name."""
