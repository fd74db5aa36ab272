"""What a forward returns must not lie in its slot, which the next unit overwrites."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from device_placement.engine._streamed_unit import Slot
from device_placement.tensors._flat_buffers import is_packed


def out_of(slot: Slot, result: Any) -> Any:
    """A copy of a result that lies in the slot, or has something in it that does; None when nothing does.

    Looks into tuples, lists and dictionaries, their subclasses included.
    """
    if isinstance(result, Tensor):
        plain = result.layout is torch.strided and not is_packed(result)
        return result.clone() if plain and slot.start <= result.data_ptr() < slot.end else None
    if isinstance(result, tuple | list):
        saved = [out_of(slot, item) for item in result]
        if any(item is not None for item in saved):
            items = [old if new is None else new for old, new in zip(result, saved, strict=True)]
            return result._make(items) if hasattr(result, "_make") else type(result)(items)
    if isinstance(result, dict):
        moved = {key: new for key, item in result.items() if (new := out_of(slot, item)) is not None}
        if moved:
            result = copy.copy(result)
            for key, item in moved.items():
                result[key] = item  # one by one: the dictionaries of some libraries refuse update()
            return result
    return None
