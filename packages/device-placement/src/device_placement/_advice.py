"""Check what an error advises: only an allocation that can be planned, slots included, is offered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NoReturn

import alloc_spec
from alloc_spec import AllocationSpec, AllocResolveError, Auto, Free, NoSpaceError, Rest
from device_placement._errors import BudgetTooSmallError
from device_placement._hardware import Hardware


def raise_advised(error: NoSpaceError, hardware: Hardware, attempt: Callable[[AllocationSpec], object]) -> NoReturn:
    """Raise an error again, with an allocation that fits if there is one.

    The allocation language counts the bytes of the model alone; what it suggests may leave no room for the slots.

    Args:
        error: what the allocation language found, with its own suggestion.
        hardware: the compute device and the donors.
        attempt: plans an allocation, or raises AllocResolveError or BudgetTooSmallError.

    Raises:
        NoSpaceError: the same with a suggestion that can be planned, or with none.
        BudgetTooSmallError: not even the least that can be resident fits beside the slots.
    """
    if error.suggestion is None:
        raise error
    suggested = alloc_spec.parse(error.suggestion)
    for spec in (suggested, _softened(suggested, hardware.compute)):
        if _refusal(spec, attempt) is None:
            raise error.with_suggestion(str(spec)) from None
    for spec in _least(suggested, hardware):
        refusal = _refusal(spec, attempt)
        if refusal is None:
            raise error.with_suggestion(str(spec)) from None
        if isinstance(refusal, BudgetTooSmallError) and refusal.device == hardware.compute:
            raise refusal from error
    raise error.with_suggestion(None) from None


def _refusal(
    spec: AllocationSpec, attempt: Callable[[AllocationSpec], object]
) -> AllocResolveError | BudgetTooSmallError | None:
    try:
        attempt(spec)
    except (AllocResolveError, BudgetTooSmallError) as refusal:
        return refusal
    return None


def _softened(spec: AllocationSpec, compute: str) -> AllocationSpec:
    """The planner decides where all free memory of the compute device was to be filled."""
    entries = tuple(
        replace(entry, amount=Auto()) if entry.device == compute and isinstance(entry.amount, Free) else entry
        for entry in spec.entries
    )
    return AllocationSpec(entries=entries, compute_device=spec.compute_device)


def _least(spec: AllocationSpec, hardware: Hardware) -> Iterator[AllocationSpec]:
    """What leaves the planner every freedom: one donor takes whatever the compute device cannot."""
    named = [name for name in spec.devices if name != hardware.compute]
    others = [device.name for device in hardware.devices if device.name not in (hardware.compute, *named)]
    for donor in (*named, *others):
        yield AllocationSpec(
            entries=(
                alloc_spec.Entry(device=hardware.compute, amount=Auto()),
                alloc_spec.Entry(device=donor, amount=Rest()),
            )
        )
