"""A tensor where it was put: notices that it is not there any more, and can be brought back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from device_placement._buffers import Spot, is_packed, over, plain_parts
from device_placement._errors import HandleInvalidatedError
from device_placement._inventory import Held, Owner

Entry = tuple[Owner, str, Tensor]
"""Where a module refers to a tensor, and the object that belongs there between forwards."""

Watch = tuple[Tensor, int, int]
"""A tensor with memory of its own, the address that it should have, and its version."""


class Kept:
    """One tensor of a placed model in its home.

    Args:
        held: the tensor and the entries that refer to it; they refer to its home already.
        device_name: its home in the plan.
        device: the same for torch.
        buffer: the flat buffer it is a view of, None for a resident tensor, which has memory of its own.
        spots: where its parts lie in the buffer, and what they look like.
    """

    __slots__ = ("buffer", "device", "device_name", "entries", "held", "packed", "spots", "watches")

    def __init__(
        self, held: Held, *, device_name: str, device: torch.device, buffer: Tensor | None, spots: tuple[Spot, ...]
    ) -> None:
        self.held = held
        self.device_name = device_name
        self.device = device
        self.buffer = buffer
        self.spots = spots
        self.entries: tuple[Entry, ...] = ()
        self.watches: tuple[Watch, ...] = ()
        self.packed: tuple[tuple[Tensor, tuple[Tensor, ...]], ...] = ()
        self.note()

    @property
    def name(self) -> str:
        """Its first name in the model."""
        return self.held.name

    @property
    def size_bytes(self) -> int:
        """Bytes of its parts."""
        return sum(spot.size_bytes for spot in self.spots)

    def note(self) -> None:
        """Take what is there now for what should be there."""
        entries = []
        objects: dict[int, Tensor] = {}
        for place in self.held.places:
            tensor = place.owner[place.key]
            assert tensor is not None
            entries.append((place.owner, place.key, tensor))
            objects[id(tensor)] = tensor
        self.entries = tuple(entries)
        self.watches = tuple(
            (part, part.data_ptr(), -1 if part.is_inference() else part._version)
            for tensor in objects.values()
            for part in plain_parts(tensor)
        )
        self.packed = tuple((tensor, tuple(plain_parts(tensor))) for tensor in objects.values() if is_packed(tensor))

    def is_home(self) -> bool:
        """Whether every entry refers to the memory it was given; its values may have changed."""
        return (
            all(owner.get(key) is tensor for owner, key, tensor in self.entries)
            and all(part.data_ptr() == pointer for part, pointer, _ in self.watches)
            and all(_same_parts(tensor, parts) for tensor, parts in self.packed)
        )

    def is_untouched(self) -> bool:
        """Whether it is home, and nothing was written to it since `note`."""
        return self.is_home() and all(part._version == version for part, _, version in self.watches)

    def adoptable(self) -> bool:
        """Whether the host replaced the tensor by another one that lives on the same device.

        The same object elsewhere was moved, as `nn.Module.to` does; another object elsewhere is taken for that, too.
        """
        for owner, key, tensor in self.entries:
            current = owner.get(key)
            if current is tensor and self._moved(tensor):
                return False
            if current is None or any(part.device != self.device for part in plain_parts(current)):
                return False
        return True

    def _moved(self, tensor: Tensor) -> bool:
        pointers = {id(part): pointer for part, pointer, _ in self.watches}
        return any(pointers.get(id(part)) != part.data_ptr() for part in plain_parts(tensor))

    def bring_home(self) -> None:
        """Copy the bytes that the entries refer to now to where they belong, and let the entries refer to these.

        Raises:
            HandleInvalidatedError: an entry is gone, or refers to something of another shape or dtype.
        """
        for owner, key, tensor in self.entries:
            current = owner.get(key)
            if current is None:
                raise HandleInvalidatedError([self.name], "was deleted")
            parts = plain_parts(current)
            if self.buffer is None and self.held.optional:
                # No plan counts with it, and the host may have made it longer (one more adapter, a larger cache).
                self.spots = tuple(Spot.of(part, 0) for part in parts)
            if [(part.dtype, tuple(part.shape)) for part in parts] != [(spot.dtype, spot.shape) for spot in self.spots]:
                raise HandleInvalidatedError([self.name], "got another shape or dtype")
            if current is tensor and not self._moved(tensor):
                continue
            homes = self._home_parts(parts)
            for part, home in zip(parts, homes, strict=True):
                if home is not part:
                    home.copy_(part)
            if any(home is not part for part, home in zip(parts, homes, strict=True)):
                alone = Held([place for place in self.held.places if place.owner is owner and place.key == key])
                alone.move_to(homes)
        self.note()

    def _home_parts(self, parts: Sequence[Tensor]) -> list[Tensor]:
        if self.buffer is not None:
            return [spot.view(self.buffer) for spot in self.spots]
        return [
            part
            if part.device == self.device
            else torch.empty_strided(spot.shape, spot.stride, dtype=spot.dtype, device=self.device)
            for part, spot in zip(parts, self.spots, strict=True)
        ]

    def views(self, base: Tensor) -> dict[int, Tensor]:
        """The same tensor over another copy of its buffer, for each object (by id) that entries refer to."""
        parts = [spot.view(base) for spot in self.spots]
        return {id(tensor): over(tensor, parts) for _, _, tensor in self.entries}


def _same_parts(tensor: Tensor, parts: tuple[Tensor, ...]) -> bool:
    """Whether a packed tensor still consists of these very objects."""
    return all(one is other for one, other in zip(plain_parts(tensor), parts, strict=True))
