"""Where each tensor's bytes lie: plain data that describes a model file or a set of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ray_parallel.workers.weights._errors import WeightsError
from ray_parallel.workers.weights._plain import Plain, require_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSlot:
    """One tensor as bytes of one part (a file, or an array of the object store).

    Attributes:
        name: key in the state dict.
        dtype: torch's name of the element type (``"bfloat16"``); ``"uint8"`` for bytes that only their owner can read.
        shape: shape of the tensor.
        size_bytes: bytes it takes.
        part: index of the part that holds it.
        offset_bytes: where it begins there.
        note: plain data about the tensor that travels with it, such as the quantisation of packed bytes.

    Raises:
        WeightsError: the numbers contradict each other.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    part: int = 0
    offset_bytes: int = 0
    note: Mapping[str, Plain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        itemsize = torch_dtype(self.name, self.dtype).itemsize
        if min(self.shape, default=0) < 0 or min(self.size_bytes, self.part, self.offset_bytes) < 0:
            raise WeightsError(f"tensor {self.name!r}", "has a negative size", "describe it with sizes of 0 or more")
        if math.prod(self.shape) * itemsize != self.size_bytes:
            raise WeightsError(
                f"tensor {self.name!r}",
                f"{self.dtype} of shape {list(self.shape)} takes {math.prod(self.shape) * itemsize} bytes, "
                f"not {self.size_bytes}",
                'give the shape in elements of its dtype, or say dtype "uint8" and shape [size] for packed bytes',
            )
        require_plain(self.note, f"the note of tensor {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsLayout:
    """All tensors of a model and the sizes of the parts that hold them.

    Attributes:
        slots: every tensor, in the order of the state dict.
        part_bytes: size of each part.
        metadata: plain data about the whole, such as the notes of a file's header.

    Raises:
        WeightsError: two tensors have one name, or one lies outside its part.
    """

    slots: tuple[TensorSlot, ...]
    part_bytes: tuple[int, ...]
    metadata: Mapping[str, Plain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_plain(self.metadata, "the metadata of the weights")
        seen: set[str] = set()
        for slot in self.slots:
            if slot.name in seen:
                raise WeightsError(f"tensor {slot.name!r}", "is described twice", "give each tensor one name")
            seen.add(slot.name)
            room = self.part_bytes[slot.part] if slot.part < len(self.part_bytes) else -1
            if slot.offset_bytes + slot.size_bytes > room:
                raise WeightsError(
                    f"tensor {slot.name!r}",
                    f"ends at byte {slot.offset_bytes + slot.size_bytes} of part {slot.part}, which "
                    + (f"has {room} bytes" if room >= 0 else "does not exist"),
                    "describe the file that is there, or download it again",
                )

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors; memory that several of them share counts once.

        >>> slot = TensorSlot(name="a", dtype="float16", shape=(2,), size_bytes=4)
        >>> tied = TensorSlot(name="b", dtype="float16", shape=(2,), size_bytes=4)
        >>> WeightsLayout(slots=(slot, tied), part_bytes=(4,)).size_bytes
        4
        """
        spans = {(slot.part, slot.offset_bytes): 0 for slot in self.slots}
        for slot in self.slots:
            span = (slot.part, slot.offset_bytes)
            spans[span] = max(spans[span], slot.size_bytes)
        return sum(spans.values())


def torch_dtype(name: str, dtype: str) -> torch.dtype:
    """The torch type of a tensor.

    Raises:
        WeightsError: this torch has no such type.
    """
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise WeightsError(
            f"tensor {name!r}",
            f"torch {torch.__version__} has no element type {dtype!r}",
            'use a newer torch, or describe it as "uint8" bytes with a note',
        )
    return found
