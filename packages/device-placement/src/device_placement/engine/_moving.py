"""Moves the tensors of a model to their homes unit by unit, and back if that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from alloc_spec import human_size
from device_placement._errors import BudgetTooSmallError, DevicesFullError
from device_placement._plan import PlacementPlan, UnitPlacement, aligned_bytes
from device_placement.copying._backend import Backend
from device_placement.engine._streamed_unit import Share, StreamedUnit
from device_placement.machine._allocation import AllocationRefused
from device_placement.tensors._flat_buffers import Spot, dense_stride
from device_placement.tensors._inventory import Assignment, Held, PlannedTensor
from device_placement.tensors._stored import Kept

Progress = Callable[[int, int], None]
"""Told the bytes that are in their homes, and those of the whole model."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Mover:
    """Moves a model, remembering where everything was.

    Attributes:
        plan: what is asked for.
        backend: gives memory.
        units: streamed units that are in their homes.
        residents: tensors that are on the compute device.
        homes: where tensors went that found no room in the home they were planned for, by name.
    """

    plan: PlacementPlan
    backend: Backend
    progress: Progress | None = None
    units: list[StreamedUnit] = field(default_factory=list)
    residents: list[Kept] = field(default_factory=list)
    homes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    _origins: list[tuple[Held, list[torch.device]]] = field(default_factory=list)
    _done_bytes: int = 0

    def move(self, assignment: Assignment) -> None:
        """Move every tensor: first what leaves for donors, which makes room on the compute device, then what stays.

        At no time do more than one unit's bytes exist twice.

        Raises:
            DevicesFullError: neither the donor nor any other has room for what is to be streamed.
            BudgetTooSmallError: the compute device has no room for what is to be resident.
        """
        for unit, tensors in assignment.units:
            self._move_streamed(unit, tensors)
            self._report(unit.streamed_bytes(self.plan.compute))
        for unit, tensors in assignment.units:
            for tensor in tensors:
                if tensor.home.device == self.plan.compute:
                    self._move_resident(tensor.held)
            self._report(unit.bytes_on(self.plan.compute))
        for held in assignment.unplanned:
            self._move_resident(held)

    def actual_plan(self) -> PlacementPlan:
        """The plan with the homes that tensors really got."""
        if not self.homes:
            return self.plan
        donors = (*self.plan.donors, *(home for home in self.homes.values() if home not in self.plan.donors))
        units = tuple(
            replace(
                unit,
                homes=tuple(replace(home, device=self.homes.get(home.name, home.device)) for home in unit.homes),
            )
            for unit in self.plan.units
        )
        warnings = (*self.plan.warnings, *self.warnings)
        return replace(self.plan, donors=tuple(dict.fromkeys(donors)), units=units, warnings=warnings)

    def roll_back(self) -> None:
        """Bring every tensor back to the device it came from, in the reverse order."""
        self.units.clear()
        self.residents.clear()
        while self._origins:
            held, devices = self._origins.pop()
            back = [
                torch.empty_strided(part.shape, dense_stride(part), dtype=part.dtype, device=device).copy_(part)
                for part, device in zip(held.parts, devices, strict=True)
            ]
            held.move_to(back)

    def _report(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        if self.progress is not None and size_bytes:
            self.progress(self._done_bytes, self.plan.size_bytes)

    def _move_streamed(self, unit: UnitPlacement, tensors: Sequence[PlannedTensor]) -> None:
        planned = {tensor.home.name: tensor.held for tensor in tensors}
        shares: list[Share] = []
        kept: list[tuple[int, Kept]] = []
        slot_offset = 0
        for donor, homes in unit.streamed(self.plan.compute).items():
            size_bytes = sum(aligned_bytes(home.size_bytes) for home in homes)
            if not size_bytes:
                for home in homes:
                    self._move_resident(planned[home.name])
                continue
            actual, buffer = self._allocate(unit.path, donor, size_bytes)
            offset = 0
            for home in homes:
                if actual != donor:
                    self.homes[home.name] = actual
                held = planned[home.name]
                spots = _spots(held.parts, offset)
                self._move(held, [spot.view(buffer) for spot in spots])
                offset += aligned_bytes(home.size_bytes)
                kept.append(
                    (
                        len(shares),
                        Kept(held, device=buffer.device, device_name=actual, buffer=buffer, spots=spots),
                    )
                )
            shares.append(Share(actual, buffer, slot_offset))
            slot_offset += size_bytes
        if shares:
            self.units.append(StreamedUnit(unit.path, tuple(shares), tuple(kept)))

    def _move_resident(self, held: Held) -> None:
        device = self.backend.device(self.plan.compute)
        spots = tuple(Spot.of(part, 0) for part in held.parts)
        if any(part.device != device for part in held.parts):
            try:
                parts = [
                    torch.empty_strided(spot.shape, spot.stride, dtype=spot.dtype, device=device) for spot in spots
                ]
            except torch.OutOfMemoryError as error:
                size_bytes = sum(spot.size_bytes for spot in spots)
                raise BudgetTooSmallError(
                    device=self.plan.compute,
                    what=f"the resident tensors up to {held.name!r}",
                    needed_bytes=self.plan.bytes_on(self.plan.compute),
                    available_bytes=self.plan.bytes_on(self.plan.compute) - size_bytes,
                    remedy="plan with a smaller budget there, or free memory of other programs; "
                    "every tensor is back where it was",
                ) from error
            self._move(held, parts)
        self.residents.append(Kept(held, device=device, device_name=self.plan.compute, buffer=None, spots=spots))

    def _move(self, held: Held, parts: Sequence[Tensor]) -> None:
        old = held.parts
        for part, home in zip(old, parts, strict=True):
            home.copy_(part)
        self._origins.append((held, [part.device for part in old]))
        held.move_to(list(parts))

    def _allocate(self, unit: str, donor: str, size_bytes: int) -> tuple[str, Tensor]:
        """A buffer on the donor, on one after it in the plan, or on the host, whichever has room first."""
        following = self.plan.donors[self.plan.donors.index(donor) :]
        refusals: dict[str, str] = {}
        for name in dict.fromkeys((*following, "cpu")):
            if name == self.plan.compute:
                continue
            try:
                buffer = self.backend.allocate(name, size_bytes)
            except AllocationRefused as refusal:
                refusals[name] = refusal.answer
                continue
            if refusals:
                warning = f"{unit}: {human_size(size_bytes)} went to {name}, since {'; '.join(refusals)} had no room"
                self.warnings.append(warning)
                _log.warning("%s (%s)", warning, "; ".join(refusals.values()))
            return name, buffer
        raise DevicesFullError(
            f"the streamed share of {unit!r}", size_bytes, refusals, "add a donor, or free memory on one of these"
        )


def _spots(parts: Sequence[Tensor], offset: int) -> tuple[Spot, ...]:
    """Places for the parts of one tensor, one after the other."""
    spots = []
    for part in parts:
        spots.append(Spot.of(part, offset))
        offset += spots[-1].size_bytes
    return tuple(spots)
