"""The slots of one placed model, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence

from alloc_spec import human_size
from device_placement._errors import BudgetTooSmallError
from device_placement.copying._backend import Backend, Streamer
from device_placement.engine._streamed_unit import Slot, StreamedUnit
from device_placement.machine._allocation import AllocationRefused


class Ring:
    """Equal slots on the compute device. A slot is filled again only when another unit needs it.

    Args:
        slots: the slots.
        streamer: copies into them.
    """

    def __init__(self, slots: Sequence[Slot], streamer: Streamer) -> None:
        self.slots = list(slots)
        self._streamer = streamer

    @classmethod
    def of_shared_memory(cls, units: Sequence[StreamedUnit], streamer: Streamer) -> Ring:
        """A slot for each unit that never has to be filled: forwards read the donors' buffers."""
        ring = cls([], streamer)
        for index, unit in enumerate(units):
            slot = Slot(index, None, streamer.gate(unit.shares[0].buffer))
            slot.unit, unit.slot = unit, slot
            ring.slots.append(slot)
        return ring

    @classmethod
    def allocated(cls, count: int, slot_bytes: int, compute: str, backend: Backend, streamer: Streamer) -> Ring:
        """Slots in memory of the compute device.

        Raises:
            BudgetTooSmallError: it has no room for them.
        """
        slots: list[Slot] = []
        try:
            for index in range(count):
                slots.append(_allocated_slot(index, slot_bytes, compute, backend, streamer))
        except AllocationRefused as refusal:
            available_bytes = len(slots) * slot_bytes
            # The error's traceback would keep them in use while the caller takes back fewer.
            slots.clear()
            raise BudgetTooSmallError(
                device=compute,
                what=f"{count} x {human_size(slot_bytes, rounding='up')} of streaming buffers",
                needed_bytes=count * slot_bytes,
                available_bytes=available_bytes,
                remedy=f"keep less of the model resident, or plan fewer slots ({refusal.answer})",
            ) from refusal
        return cls(slots, streamer)

    @property
    def size_bytes(self) -> int:
        """Bytes of all slots."""
        return sum(slot.buffer.numel() for slot in self.slots if slot.buffer is not None)

    def load(self, unit: StreamedUnit, wanted: Sequence[StreamedUnit]) -> Slot | None:
        """Start to bring `unit` into a slot that no forward reads and that holds none of the units `wanted` soon.

        Returns:
            the slot, or None when all are in use.
        """
        for slot in self.slots:
            if not slot.busy and slot.unit not in wanted:
                return self._fill(slot, unit)
        return None

    def load_anywhere(self, unit: StreamedUnit) -> Slot | None:
        """The same, at the cost of a unit that is wanted later."""
        for slot in reversed(self.slots):
            if not slot.busy:
                return self._fill(slot, unit)
        return None

    def _fill(self, slot: Slot, unit: StreamedUnit) -> Slot:
        if slot.unit is not None:
            slot.unit.slot = None
        slot.unit = None
        slot.gate.fill(unit.transfers(slot, self._streamer))
        slot.unit, unit.slot = unit, slot
        unit.fetches += 1
        return slot

    def empty(self, unit: StreamedUnit) -> None:
        """Let nobody rely on what is in the slot of a unit that no forward reads."""
        slot = unit.slot
        if slot is not None and slot.buffer is not None and not slot.busy:
            slot.unit = unit.slot = None

    def refill(self, unit: StreamedUnit) -> None:
        """Bring the unit again into the slot it is in, because its values changed at home."""
        slot = unit.slot
        if slot is not None and slot.buffer is not None:
            self._fill(slot, unit)


def _allocated_slot(index: int, size_bytes: int, compute: str, backend: Backend, streamer: Streamer) -> Slot:
    buffer = backend.allocate(compute, size_bytes)
    return Slot(index, buffer, streamer.gate(buffer))
