"""Packed weights for code that reads numbers: dense tensors, made when something is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_KEPT = frozenset({"shape", "dtype", "device"})
"""What a packed weight says of itself without being read."""


class DenseOnDemand:
    """Stands for a weight in places of the host that compute with it: merges, extraction of a LoRA, hooks.

    The host would read the packed bytes as numbers there. A copy of every weight at once would need the memory that
    packing saves.

    Args:
        weight: the packed weight.
        read: gives its numbers, patched where the host expects patches to be written.
    """

    __slots__ = ("__read", "__weight")

    def __init__(self, weight: torch.Tensor, read: Callable[[], torch.Tensor]) -> None:
        self.__weight = weight
        self.__read = read

    def numbers(self) -> torch.Tensor:
        """The weight as a dense tensor, made now."""
        return self.__read()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.__weight if name in _KEPT else self.numbers(), name)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch on the numbers."""
        if func is torch.empty_like:
            (one,), options = args, dict(kwargs or {})
            options = {"dtype": one.dtype, "device": one.device} | {k: v for k, v in options.items() if v is not None}
            return torch.empty(tuple(one.shape), **options)
        return func(*map(_dense, args), **{name: _dense(value) for name, value in (kwargs or {}).items()})


def _dense(value: Any) -> Any:
    if isinstance(value, DenseOnDemand):
        return value.numbers()
    return type(value)(map(_dense, value)) if type(value) in (list, tuple) else value
