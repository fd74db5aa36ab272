"""A placement as data: the home of every tensor of every unit. No tensors, no devices, no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Policy = Literal["stripe", "interleave", "contiguous", "legacy_tail"]
UnitKind = Literal["block", "leaf", "rest"]

ALIGNMENT_BYTES = 512
"""Every tensor starts on this boundary in a donor's flat buffer and in a slot (the allocation step of CUDA)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHome:
    """Where one tensor lives between forwards.

    Attributes:
        name: dotted name in the model.
        size_bytes: bytes of the tensor.
        device: name of its home; equal to the plan's compute device when the tensor is resident.
    """

    name: str
    size_bytes: int
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlacement:
    """The homes of one unit's tensors; those that are not on the compute device are streamed in for its forward."""

    path: str
    class_name: str
    kind: UnitKind
    homes: tuple[TensorHome, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the unit."""
        return sum(home.size_bytes for home in self.homes)

    def bytes_on(self, device: str) -> int:
        """Bytes of the unit whose home is `device`."""
        return sum(home.size_bytes for home in self.homes if home.device == device)

    def streamed(self, compute: str) -> dict[str, tuple[TensorHome, ...]]:
        """Tensors to be brought over before the unit runs on `compute`, by donor, in donor-buffer order."""
        by_donor: dict[str, list[TensorHome]] = {}
        for home in self.homes:
            if home.device != compute:
                by_donor.setdefault(home.device, []).append(home)
        return {donor: tuple(homes) for donor, homes in by_donor.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPlan:
    """Placement of every unit of a model.

    Attributes:
        compute: device that runs every forward.
        donors: devices that hold the rest, in the user's order.
        policy: how the resident bytes were chosen.
        slots: number of equal streaming buffers on the compute device.
        units: in the order of the model.
        warnings: sentences for the log, never fatal.
    """

    compute: str
    donors: tuple[str, ...]
    policy: Policy
    slots: int
    units: tuple[UnitPlacement, ...]
    warnings: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole model."""
        return sum(unit.size_bytes for unit in self.units)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: the largest streamed share of a unit, every tensor aligned; 0 when nothing is streamed."""
        return max((_aligned(unit, self.compute) for unit in self.units), default=0)

    def bytes_on(self, device: str) -> int:
        """Bytes of the model whose home is `device` (slots not included)."""
        return sum(unit.bytes_on(device) for unit in self.units)


def _aligned(unit: UnitPlacement, compute: str) -> int:
    """Bytes that the streamed tensors of a unit take in a slot."""
    return sum(
        -(-home.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        for homes in unit.streamed(compute).values()
        for home in homes
    )
