"""Views of decoded weights: a write to one would be lost, so it is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor

from device_placement.packed._errors import PackedError


class ReadOnly(torch.Tensor):
    """A dense tensor that everything can read and nothing can write to.

    What an operation computes from it is a plain tensor; a view of it is read-only again.

    Attributes:
        plain: the same as an ordinary tensor.
    """

    plain: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, plain: Tensor) -> Self:
        """Wrap a dense tensor."""
        return torch.Tensor._make_wrapper_subclass(
            cls,
            plain.size(),
            strides=plain.stride(),
            storage_offset=plain.storage_offset(),
            dtype=plain.dtype,
            device=plain.device,
        )

    def __init__(self, plain: Tensor) -> None:
        self.plain = plain

    @classmethod
    def of_views(cls, func: Any, result: Any) -> Any:
        """`result` of the operation `func`, read-only where it may share memory with what `func` was given."""
        if not any(value.alias_info is not None for value in func._schema.returns):
            return result
        if func._schema.is_mutable:
            return result
        if isinstance(result, (list, tuple)):
            return [cls(value) if isinstance(value, Tensor) else value for value in result]
        return cls(result)

    def data_ptr(self) -> int:
        """Address of the first value."""
        return self.plain.data_ptr()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["plain"], None

    @staticmethod
    def __tensor_unflatten__(
        inner_tensors: Mapping[str, Tensor], context: None, outer_size: Any = None, outer_stride: Any = None
    ) -> ReadOnly:
        return ReadOnly(inner_tensors["plain"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(tensor, ReadOnly) for tensor in written_to(func, args, kwargs)):
            raise PackedError(
                f"{func} would write to a view of packed weights, and the write would be lost; "
                "write to a copy (.clone()), or call unpack_model() first"
            )
        result = func(*_plain(args), **{name: _plain(value) for name, value in kwargs.items()})
        return cls.of_views(func, result)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"ReadOnly({self.plain!r})"


def written_to(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The tensors that an operation writes to."""
    schema = func._schema
    if not schema.is_mutable:
        return
    for index, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name) if argument.kwarg_only or index >= len(args) else args[index]
            yield from value if isinstance(value, (list, tuple)) else (value,)


def _plain(value: Any) -> Any:
    if isinstance(value, ReadOnly):
        return value.plain
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
