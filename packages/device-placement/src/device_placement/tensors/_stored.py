"""A tensor where it was put: notices that it is not there any more, and can be brought back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from device_placement._errors import HandleInvalidatedError
from device_placement.tensors._flat_buffers import Spot, is_packed, over, plain_parts
from device_placement.tensors._inventory import Held, Owner

Entry = tuple[Owner, str, Tensor]
"""Where a module refers to a tensor, and the object that belongs there between forwards."""

Version = tuple[Tensor, int]
"""A tensor and how often something had been written to it."""


class Kept:
    """One tensor of a placed model in its home.

    Args:
        held: the tensor and the entries that refer to it; they refer to its home already.
        device_name: its home in the plan.
        device: the same for torch.
        buffer: the flat buffer it is a view of, None for a resident tensor, which has separate memory.
        spots: where its parts lie in the buffer, and what they look like.
    """

    __slots__ = ("buffer", "device", "device_name", "entries", "held", "loose", "packed", "pointers", "spots")

    def __init__(
        self, held: Held, *, device_name: str, device: torch.device, buffer: Tensor | None, spots: tuple[Spot, ...]
    ) -> None:
        self.held = held
        self.device_name = device_name
        self.device = device
        self.buffer = buffer
        self.spots = spots
        self.entries: tuple[Entry, ...] = ()
        self.pointers: tuple[tuple[Tensor, int], ...] = ()
        self.loose: tuple[Version, ...] = ()
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
        parts = [part for tensor in objects.values() for part in plain_parts(tensor)]
        self.pointers = tuple((part, part.data_ptr()) for part in parts)
        self.loose = () if self.buffer is None else tuple(_counting_for_themselves(parts, self.buffer))
        self.packed = tuple((tensor, tuple(plain_parts(tensor))) for tensor in objects.values() if is_packed(tensor))

    def is_home(self) -> bool:
        """Whether every entry refers to the memory it was given; its values may have changed."""
        return (
            all(owner.get(key) is tensor for owner, key, tensor in self.entries)
            and all(part.data_ptr() == pointer for part, pointer in self.pointers)
            and all(_same_parts(tensor, parts) for tensor, parts in self.packed)
        )

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
        pointers = {id(part): pointer for part, pointer in self.pointers}
        return any(pointers.get(id(part)) != part.data_ptr() for part in plain_parts(tensor))

    def bring_home(self) -> None:
        """Let a resident tensor live on its device again: what is there stays, what is elsewhere is copied.

        Raises:
            HandleInvalidatedError: an entry is gone or refers to something of another shape or dtype.
        """
        for (owner, key, _), parts in zip(self.entries, self.found(), strict=True):
            homes = [
                part
                if part.device == self.device
                else torch.empty_strided(spot.shape, spot.stride, dtype=spot.dtype, device=self.device).copy_(part)
                for part, spot in zip(parts, self.spots, strict=True)
            ]
            if any(home is not part for part, home in zip(parts, homes, strict=True)):
                self._place(owner, key).move_to(homes)
        self.note()

    def copy_to(self, buffer: Tensor, spots: Sequence[Spot], found: Sequence[Sequence[Tensor]]) -> None:
        """Copy what the entries refer to now, as `found` returned it, into a buffer that nobody else refers to."""
        for spot, part in zip(spots, found[0], strict=True):
            spot.view(buffer).copy_(part)

    def live_in(self, buffer: Tensor, spots: tuple[Spot, ...], *, move: bool) -> None:
        """Belong to a part of another buffer from now on.

        Args:
            buffer: flat; it has the bytes already.
            spots: where the parts of the tensor lie in it.
            move: whether the entries are to refer to it; they do already where the buffer is a view of the old one.
        """
        self.buffer, self.spots = buffer, spots
        for owner, key, _ in self.entries if move else ():
            self._place(owner, key).move_to([spot.view(buffer) for spot in spots])
        self.note()

    def found(self) -> list[list[Tensor]]:
        """The plain tensors that each entry refers to now.

        Raises:
            HandleInvalidatedError: an entry is gone, refers to something of another shape or dtype, or, where the
                tensor is streamed, to something else than the other entries of a tied tensor, which have one home.
        """
        found = [self._found(owner, key) for owner, key, _ in self.entries]
        astray = [owner[key] is not tensor or self._moved(tensor) for owner, key, tensor in self.entries]
        if self.buffer is not None and any(astray):
            self._check_tie(found, all_astray=all(astray))
        return found

    def _place(self, owner: Owner, key: str) -> Held:
        """One of the entries alone."""
        return Held([place for place in self.held.places if place.owner is owner and place.key == key])

    def _found(self, owner: Owner, key: str) -> list[Tensor]:
        """The plain tensors that an entry refers to now, if they could live here."""
        current = owner.get(key)
        if current is None:
            raise HandleInvalidatedError([self.name], "was deleted")
        parts = plain_parts(current)
        if self.buffer is None and self.held.optional:
            # No plan counts with it, and the host may have made it longer (one more adapter, a larger cache).
            self.spots = tuple(Spot.of(part, 0) for part in parts)
        if [(part.dtype, tuple(part.shape)) for part in parts] != [(spot.dtype, spot.shape) for spot in self.spots]:
            raise HandleInvalidatedError([self.name], "got another shape or dtype")
        return parts

    def _check_tie(self, found: Sequence[Sequence[Tensor]], *, all_astray: bool) -> None:
        if not all_astray:
            raise HandleInvalidatedError([self.name], "is tied and was replaced in one of its places")
        first, *others = found
        for other in others:
            if not all(one is two or torch.equal(one, two) for one, two in zip(first, other, strict=True)):
                raise HandleInvalidatedError([self.name], "is tied and got different values in its places")

    def views(self, base: Tensor) -> dict[int, Tensor]:
        """The same tensor over another copy of its buffer, for each object (by id) that entries refer to."""
        parts = [spot.view(base) for spot in self.spots]
        return {id(tensor): over(tensor, parts) for _, _, tensor in self.entries}


def _same_parts(tensor: Tensor, parts: tuple[Tensor, ...]) -> bool:
    """Whether a packed tensor still consists of these very objects."""
    return all(one is other for one, other in zip(plain_parts(tensor), parts, strict=True))


def _counting_for_themselves(parts: Sequence[Tensor], buffer: Tensor) -> list[Version]:
    """Those of `parts` to which a write is not one to `buffer`, though they lie in it."""
    before = [part._version for part in parts]
    buffer[:0].zero_()
    return [(part, version) for part, version in zip(parts, before, strict=True) if part._version == version]
