"""What an error advises: an allocation is offered only after it was planned, slots included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NoReturn

import alloc_spec
from alloc_spec import AllocationSpec, AllocResolveError, Auto, Budget, Entry, NoSpaceError, Rest
from device_placement._errors import BudgetTooSmallError
from device_placement._hardware import Hardware


def raise_advised(
    error: NoSpaceError | BudgetTooSmallError,
    asked: AllocationSpec | Budget,
    hardware: Hardware,
    attempt: Callable[[AllocationSpec], object],
) -> NoReturn:
    """Raise an error again, with an allocation that can be planned if there is one.

    Args:
        error: why what was asked cannot be planned. The allocation language counts the bytes of the model alone; what
            it suggests may leave no room for the slots.
        asked: the allocation.
        hardware: the compute device and the donors.
        attempt: plans an allocation, or raises AllocResolveError or BudgetTooSmallError.

    Raises:
        NoSpaceError: the same with a suggestion that can be planned, or with none.
        BudgetTooSmallError: the same with a suggestion if there is one; or not even the least that can be resident
            fits beside the slots.
    """
    if isinstance(error, NoSpaceError):
        if error.suggestion is None:
            raise error
        asked = alloc_spec.parse(error.suggestion)
    crowded: BudgetTooSmallError | None = None
    for spec in (*_nearest(asked, hardware.compute), *_least(asked, hardware)):
        try:
            attempt(spec)
        except BudgetTooSmallError as refusal:
            crowded = refusal if refusal.device == hardware.compute else crowded
        except AllocResolveError:
            continue
        else:
            raise error.with_suggestion(str(spec)) from None
    if isinstance(error, BudgetTooSmallError):
        raise error from None
    if crowded is not None:
        raise crowded from error
    raise error.with_suggestion(None) from None


def _nearest(asked: AllocationSpec | Budget, compute: str) -> Iterator[AllocationSpec]:
    """What was asked, and the same with the planner to decide about the compute device."""
    if isinstance(asked, Budget):
        return
    yield asked
    if asked.rest_device not in (None, compute):
        entries = (replace(entry, amount=Auto()) if entry.device == compute else entry for entry in asked.entries)
        yield AllocationSpec(entries=tuple(entries), compute_device=asked.compute_device)


def _least(asked: AllocationSpec | Budget, hardware: Hardware) -> Iterator[AllocationSpec]:
    """What leaves the planner every freedom: one donor takes whatever the compute device cannot."""
    named = asked.order if isinstance(asked, Budget) else asked.devices
    others = sorted((device.name for device in hardware.devices), key=lambda name: name != "cpu")
    for donor in dict.fromkeys((*named, *others)):
        if donor != hardware.compute:
            yield AllocationSpec(
                entries=(Entry(device=hardware.compute, amount=Auto()), Entry(device=donor, amount=Rest()))
            )
