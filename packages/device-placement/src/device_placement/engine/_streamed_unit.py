"""A unit whose tensors are exchanged for their copies in a slot while its forward runs."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from device_placement.copying._backend import Gate, Streamer, Transfer
from device_placement.tensors._inventory import Owner
from device_placement.tensors._stored import Entry, Kept

Exchange = tuple[Owner, str, Tensor, Tensor]
"""An entry of a module, what belongs there between forwards, and what does during one."""


class Share:
    """What one donor stores of one unit: a flat buffer, and where it goes in a slot."""

    __slots__ = ("buffer", "donor", "slot_offset")

    def __init__(self, donor: str, buffer: Tensor, slot_offset: int) -> None:
        self.donor = donor
        self.buffer = buffer
        self.slot_offset = slot_offset

    def part_of(self, slot: Tensor) -> Tensor:
        """The bytes of a slot that this share fills."""
        return slot[self.slot_offset : self.slot_offset + self.buffer.numel()]


class Slot:
    """A buffer on the compute device that units take turns in.

    Attributes:
        index: its number.
        buffer: the bytes; None where donors share the memory of the compute device: each unit then has its own slot.
        gate: orders copies against forwards.
        unit: whose bytes are in it, or on their way.
        busy: a forward reads it now.
        start: address of the first byte.
        end: address after the last.
    """

    __slots__ = ("buffer", "busy", "end", "gate", "index", "start", "unit")

    def __init__(self, index: int, buffer: Tensor | None, gate: Gate) -> None:
        self.index = index
        self.buffer = buffer
        self.gate = gate
        self.unit: StreamedUnit | None = None
        self.busy = False
        self.start = 0 if buffer is None else buffer.data_ptr()
        self.end = 0 if buffer is None else self.start + buffer.numel()


class StreamedUnit:
    """What the engine knows of one unit with streamed tensors.

    Args:
        path: of its module.
        shares: its bytes by donor.
        kept: its streamed tensors, each with the index of its share.

    Attributes:
        entries: all entries of its modules that refer to streamed tensors, in their state between forwards.
        slot: where its bytes are, or None.
        depth: how often it is being called, by the thread `owner`.
        calls: forwards so far.
        fetches: times its bytes were brought over.
        callers: modules whose forward reads its tensors.
        scouts: hooks on parts that are looked out for, until the first call shows who is called.
    """

    __slots__ = (
        *("_current", "_exchanges", "_packed", "_patrol", "_transfers", "_turn", "_unexchanged", "_version"),
        *("_versions", "callers", "calls", "depth", "entries", "fetches", "kept", "owner", "path", "scouts"),
        *("shares", "slot"),
    )

    def __init__(self, path: str, shares: tuple[Share, ...], kept: tuple[tuple[int, Kept], ...]) -> None:
        self.path = path
        self.shares = shares
        self.kept = kept
        self.slot: Slot | None = None
        self.depth = 0
        self.owner = 0
        self.calls = 0
        self.fetches = 0
        self.callers: list[nn.Module] = []
        self.scouts: dict[nn.Module, tuple[RemovableHandle, RemovableHandle]] = {}
        self._exchanges: dict[int, tuple[Exchange, ...]] = {}
        self._current: tuple[Exchange, ...] = ()
        self._version = 0
        self._transfers: dict[int, tuple[Transfer, ...]] = {}
        self.note()

    @property
    def tensors(self) -> list[Kept]:
        """Its streamed tensors."""
        return [kept for _, kept in self.kept]

    def note(self) -> None:
        """Take what the entries refer to now for what belongs there; views made for other objects are dropped."""
        self.entries: tuple[Entry, ...] = tuple(entry for kept in self.tensors for entry in kept.entries)
        self._unexchanged: tuple[Exchange, ...] = tuple((*entry, entry[2]) for entry in self.entries)
        self._exchanges.clear()
        self._versions = tuple(
            [(share.buffer, share.buffer._version) for share in self.shares]
            + [loose for kept in self.tensors for loose in kept.loose]
        )
        plain = {id(kept.entries[0][0]): kept.pointers[0] for kept in self.tensors if not kept.packed}
        self._patrol = tuple(plain.values())
        self._turn = 0
        self._packed = tuple(kept for kept in self.tensors if kept.packed)

    def divide(self, shares: tuple[Share, ...], kept: tuple[tuple[int, Kept], ...]) -> None:
        """Count with other shares, which fill the same bytes of a slot; what was prepared for the old ones goes."""
        self.shares, self.kept = shares, kept
        self._transfers.clear()
        self.note()

    def is_untouched(self) -> bool:
        """Whether every tensor is the one that was put here, with the values that were copied.

        A replaced or edited tensor is seen at once. Whether tensors were moved is looked at for one tensor of one
        module at a time: who moves a unit moves them all. A smaller move is seen after as many forwards as the unit
        has modules; until then they use the values, types and devices of before.
        """
        slot = self.slot
        # The same entries with the views that are needed next: what is not looked at stays out of the caches.
        entries = self._unexchanged if slot is None else self._exchanges.get(slot.index, self._unexchanged)
        try:
            for owner, key, home, _ in entries:
                if owner[key] is not home:
                    return False
        except KeyError:
            return False
        for tensor, version in self._versions:
            if tensor._version != version:
                return False
        if self._patrol:
            part, pointer = self._patrol[self._turn]
            self._turn = (self._turn + 1) % len(self._patrol)
            if part.data_ptr() != pointer:
                return False
        return not self._packed or all(kept.is_home() for kept in self._packed)

    def exchange(self, slot: Slot) -> None:
        """Let the modules refer to the copies in `slot`, until `restore`."""
        exchanges = self._exchanges.get(slot.index)
        if exchanges is None:
            exchanges = self._exchanges[slot.index] = self._exchanges_for(slot)
        for owner, key, _, view in exchanges:
            owner[key] = view
        slot.busy = True
        self._current = exchanges
        if slot.buffer is not None:
            self._version = slot.buffer._version

    def restore(self) -> None:
        """Let the modules refer to the homes again, except where a forward put something else; the slot is free."""
        for owner, key, home, view in self._current:
            if owner.get(key) is view:
                owner[key] = home
        self._current = ()
        assert self.slot is not None
        self.slot.gate.release()
        self.slot.busy = False

    def wrote_to(self, buffer: Tensor) -> bool:
        """Whether something wrote to the slot since `exchange`: its views count as one tensor."""
        return buffer._version != self._version

    def _exchanges_for(self, slot: Slot) -> tuple[Exchange, ...]:
        views: dict[int, Tensor] = {}
        # A tensor made in the caller's inference mode could not be used by a forward outside it later.
        with torch.inference_mode(False), torch.no_grad():
            for share_index, kept in self.kept:
                share = self.shares[share_index]
                views |= kept.views(share.buffer if slot.buffer is None else share.part_of(slot.buffer))
        return tuple((owner, key, home, views[id(home)]) for owner, key, home in self.entries)

    def transfers(self, slot: Slot, streamer: Streamer) -> tuple[Transfer, ...]:
        """The copies that bring the unit into a slot; made once."""
        transfers = self._transfers.get(slot.index)
        if transfers is None:
            assert slot.buffer is not None
            transfers = self._transfers[slot.index] = tuple(
                streamer.transfer(share.donor, share.buffer, share.part_of(slot.buffer)) for share in self.shares
            )
        return transfers

    def dismiss(self, parts: Iterable[nn.Module]) -> None:
        """What contains these parts is called: nobody has to look out for them any more."""
        for part in parts:
            for handle in self.scouts.pop(part, ()):
                handle.remove()

    def is_running(self) -> bool:
        """Whether a forward of the unit is on the stack of the calling thread."""
        frame: types.FrameType | None = sys._getframe()
        while frame is not None:
            running = frame.f_locals.get("self")
            if any(running is caller for caller in self.callers):
                return True
            frame = frame.f_back
        return False

    def forget_slots(self) -> None:
        """Drop everything that refers to slots, which are about to go."""
        self.slot = None
        self._exchanges.clear()
        self._transfers.clear()
