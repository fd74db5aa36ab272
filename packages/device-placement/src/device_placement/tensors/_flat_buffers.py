"""Tensors as views of flat byte buffers: one buffer holds what one donor stores of one unit.

A buffer starts every tensor on a 512-byte boundary and keeps the tensor's strides, so that one copy moves a whole
unit and a view of the copy is the tensor it was. A tensor subclass that describes itself by ``__tensor_flatten__``
(packed quantised weights, say) is stored as the plain tensors inside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where one plain tensor lies in a buffer.

    Attributes:
        offset: first byte.
        size_bytes: bytes of its elements.
        dtype: their type.
        shape: its shape.
        stride: its strides in elements; those it had, unless it had gaps or overlapped itself.
    """

    offset: int
    size_bytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor, offset: int) -> Spot:
        """The spot that `tensor` takes from byte `offset` on."""
        return cls(
            offset=offset,
            size_bytes=tensor.numel() * tensor.element_size(),
            dtype=tensor.dtype,
            shape=tuple(tensor.shape),
            stride=dense_stride(tensor),
        )

    def view(self, buffer: Tensor) -> Tensor:
        """The tensor that lies here in a flat uint8 `buffer`."""
        flat = buffer[self.offset : self.offset + self.size_bytes].view(self.dtype)
        return flat.as_strided(self.shape, self.stride)


def dense_stride(tensor: Tensor) -> tuple[int, ...]:
    """Strides of `tensor` if its elements fill their memory without gaps, else those of a contiguous tensor.

    >>> dense_stride(torch.empty(2, 3).t()), dense_stride(torch.empty(2, 4)[:, :3])
    ((1, 3), (3, 1))
    """
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return tuple(torch.empty(tensor.shape, device="meta").stride())
        expected *= size
    return tuple(tensor.stride())


def is_packed(tensor: Tensor) -> bool:
    """Whether `tensor` is a wrapper around plain tensors that it names itself."""
    kind = type(tensor)
    return hasattr(kind, "__tensor_flatten__") and hasattr(kind, "__tensor_unflatten__")


def plain_parts(tensor: Tensor) -> list[Tensor]:
    """The tensors with memory of their own that `tensor` consists of; itself when it is plain.

    Those with wide elements come first, so that each lies on a multiple of its element size when they follow one
    another without gaps.
    """
    return sorted(_leaves(tensor), key=lambda part: -part.element_size())


def _leaves(tensor: Tensor) -> list[Tensor]:
    if not is_packed(tensor):
        return [tensor]
    names, _ = _flattened(tensor)
    return [leaf for name in names for leaf in _leaves(getattr(tensor, name))]


def _flattened(tensor: Any) -> tuple[Sequence[str], Any]:
    names, context = tensor.__tensor_flatten__()
    return names, context


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of the elements that have to be stored; those of the packed blocks for a packed tensor."""
    return sum(part.numel() * part.element_size() for part in plain_parts(tensor))


def over(tensor: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """A tensor of the same class as `tensor` over other memory.

    Args:
        tensor: what to imitate; a parameter gives a parameter, with the same `requires_grad` and Python attributes.
        parts: one plain tensor for each of `plain_parts(tensor)`, in that order.
    """
    leaves = _leaves(tensor)
    wide_first = sorted(range(len(leaves)), key=lambda index: -leaves[index].element_size())
    by_leaf = dict(zip(wide_first, parts, strict=True))
    result: Tensor = _over(tensor, iter([by_leaf[leaf] for leaf in range(len(leaves))]))
    return result


def _over(tensor: Any, leaves: Iterator[Tensor]) -> Any:
    if is_packed(tensor):
        names, context = _flattened(tensor)
        inner = {name: _over(getattr(tensor, name), leaves) for name in names}
        packed = type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
        return nn.Parameter(packed, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else packed
    part = next(leaves)
    result: Any
    if type(tensor) is nn.Parameter:
        result = nn.Parameter(part, requires_grad=tensor.requires_grad)
    elif type(tensor) is Tensor:
        result = part.detach().requires_grad_(tensor.requires_grad)
    else:
        result = torch.Tensor._make_subclass(type(tensor), part, tensor.requires_grad)
    result.__dict__.update(tensor.__dict__)
    return result
