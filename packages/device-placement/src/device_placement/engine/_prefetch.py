"""Which unit is copied into which slot next: those that are expected next, each as soon as a slot is free for it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from device_placement._errors import HandleStateError
from device_placement.engine._prefetch_order import CallOrder
from device_placement.engine._slots import Ring
from device_placement.engine._streamed_unit import Slot, StreamedUnit

_log = logging.getLogger(__name__)


def fetch_ahead(ring: Ring, order: CallOrder[StreamedUnit], current: StreamedUnit | None = None) -> None:
    """Start the copies of the units expected next, as many as there are slots for, sparing that of `current`."""
    wanted = order.upcoming(len(ring.slots))
    spared = wanted if current is None else [*wanted, current]
    for unit in wanted:
        if unit.slot is None and ring.load(unit, spared) is None:
            return


def fetch_now(ring: Ring, order: CallOrder[StreamedUnit], unit: StreamedUnit, free_slots: Callable[[], None]) -> Slot:
    """Start the copies of a unit that is called and in no slot.

    Args:
        ring: the slots.
        order: what is expected next; its slots are taken last.
        unit: the unit.
        free_slots: ends forwards that were left without notice, where every slot is in use.

    Raises:
        HandleStateError: every slot is in use by the units around this one.
    """
    slot = ring.load(unit, order.upcoming(len(ring.slots))) or ring.load_anywhere(unit)
    if slot is None:
        free_slots()
        slot = ring.load_anywhere(unit)
    if slot is None:
        raise HandleStateError(
            f"{unit.path!r} is called inside {len(ring.slots)} other streamed units and every slot is in use; "
            f"plan at least {len(ring.slots) + 1} slots"
        )
    return slot


def report_uncalled(units: Sequence[StreamedUnit]) -> None:
    """Warn of units that the first forward of the model did not call."""
    uncalled = [unit.path for unit in units if not unit.calls]
    if uncalled:
        _log.warning(
            "%d units with streamed tensors were not called in the first forward (%s); if a forward reads their "
            "tensors without calling them, give them a home on the compute device",
            len(uncalled),
            ", ".join(uncalled[:5]),
        )
