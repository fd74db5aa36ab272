"""Marks memory that belongs to a placed model, so that another model which shares a tensor is not placed on top of it.

The mark is kept with the memory itself (an attribute of torch's storage object, which every view shares), by address:
a storage may hold many tensors, those of a file for example. Copies and files of a tensor do not have it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

ATTRIBUTE = "_device_placement_owners"


class Claimant(Protocol):
    """Whoever owns memory.

    Attributes:
        closed: whether it has given everything up.
    """

    @property
    def closed(self) -> bool: ...


def claim(parts: Iterable[Tensor], claimant: Claimant) -> None:
    """Say that the memory of plain tensors belongs to `claimant`, until it is closed or gone."""
    reference = weakref.ref(claimant)
    for part in parts:
        storage: Any = part.untyped_storage()
        owners = storage.__dict__.setdefault(ATTRIBUTE, {})
        owners[part.data_ptr()] = reference


def is_claimed(part: Tensor) -> bool:
    """Whether the memory of a plain tensor belongs to a placed model."""
    owners = part.untyped_storage().__dict__.get(ATTRIBUTE)
    if not owners or not part.numel():
        return False
    reference = owners.get(part.data_ptr())
    claimant = None if reference is None else reference()
    if claimant is not None and not claimant.closed:
        return True
    if reference is not None:
        del owners[part.data_ptr()]
    return False
