"""A placement as data: the home of every tensor of every unit. No tensors, no devices, no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from device_placement import _serial
from device_placement._errors import InvalidPlanError
from device_placement._numbers import is_count, is_finite, quoted

Policy = Literal["stripe", "interleave", "contiguous", "legacy_tail"]
UnitKind = Literal["block", "leaf", "rest"]

POLICIES: tuple[Policy, ...] = get_args(Policy)
"""Every policy, the default first."""

ALIGNMENT_BYTES = 512
"""Every tensor starts on this boundary in a donor's flat buffer and in a slot (the allocation step of CUDA)."""


def aligned_bytes(size_bytes: int) -> int:
    """Bytes that a tensor of `size_bytes` takes in a donor's buffer or in a slot.

    >>> aligned_bytes(1), aligned_bytes(512), aligned_bytes(0)
    (512, 512, 0)
    """
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorHome:
    """Where one tensor lives between forwards.

    Attributes:
        name: dotted name in the model.
        size_bytes: bytes of the tensor.
        device: name of its home; equal to the plan's compute device when the tensor is resident.

    Raises:
        InvalidPlanError: the size is no whole number of bytes from 0 to 2^63 - 1.
    """

    name: str
    size_bytes: int
    device: str

    def __post_init__(self) -> None:
        if not is_count(self.size_bytes):
            raise InvalidPlanError(
                f"tensor {self.name!r} has {quoted(self.size_bytes)} bytes; give whole bytes from 0 to 2^63 - 1"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlacement:
    """The homes of one unit's tensors; those that are not on the compute device are streamed in for its forward.

    Attributes:
        path: dotted module path; empty for the unit of kind ``"rest"``.
        class_name: class of the module, may be empty.
        kind: ``"block"``, ``"leaf"`` or ``"rest"``; the rest is always resident.
        homes: one home a tensor, in the order of the model.
        is_embedding: a lookup table: it may be streamed like any unit, but computes next to nothing while it does.
    """

    path: str
    class_name: str
    kind: UnitKind
    homes: tuple[TensorHome, ...]
    is_embedding: bool = False

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

    def streamed_bytes(self, compute: str) -> int:
        """Bytes brought over for one forward of the unit."""
        return sum(home.size_bytes for home in self.homes if home.device != compute)


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

    Raises:
        InvalidPlanError: a tensor or unit twice, a home on a device that the plan does not name, a rest that is not
            resident, no slot, an unknown policy.
    """

    compute: str
    donors: tuple[str, ...]
    policy: Policy
    slots: int
    units: tuple[UnitPlacement, ...]
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise InvalidPlanError(f"policy {self.policy!r} does not exist; choose one of {', '.join(POLICIES)}")
        if not is_count(self.slots, least=1):
            raise InvalidPlanError(
                f"{quoted(self.slots)} slots cannot receive anything; use 1 or more (2 overlap copy and compute)"
            )
        repeated = _first_repeated((self.compute, *self.donors))
        if repeated is not None:
            raise InvalidPlanError(
                f"device {repeated!r} is named twice; a plan has one compute device and other devices as donors"
            )
        repeated = _first_repeated(unit.path for unit in self.units)
        if repeated is not None:
            raise InvalidPlanError(f"unit {repeated!r} is placed twice; give each unit one entry")
        repeated = _first_repeated(home.name for unit in self.units for home in unit.homes)
        if repeated is not None:
            raise InvalidPlanError(f"tensor {repeated!r} has two homes; charge a tied tensor once, to the rest")
        known = {self.compute, *self.donors}
        for unit in self.units:
            for home in unit.homes:
                if home.device not in known:
                    raise InvalidPlanError(
                        f"tensor {home.name!r} lives on {home.device!r}, which is neither the compute device "
                        f"{self.compute!r} nor a donor ({', '.join(self.donors) or 'none'}); add it to the donors"
                    )
                if unit.kind == "rest" and home.device != self.compute:
                    raise InvalidPlanError(
                        f"tensor {home.name!r} of the rest lives on {home.device!r}; nothing streams the rest in, "
                        f"so its home must be {self.compute!r}"
                    )

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole model."""
        return sum(unit.size_bytes for unit in self.units)

    @property
    def streamed_bytes(self) -> int:
        """Bytes brought over in a pass that calls every unit once."""
        return sum(unit.streamed_bytes(self.compute) for unit in self.units)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot: the largest streamed share of a unit, every tensor aligned; 0 when nothing is streamed."""
        return max((slot_bytes_of(unit, self.compute) for unit in self.units), default=0)

    @property
    def compute_peak_bytes(self) -> int:
        """Bytes of weights on the compute device at any time: what is resident, and all slots."""
        return self.bytes_on(self.compute) + self.slots * self.slot_bytes

    def bytes_on(self, device: str) -> int:
        """Bytes of the model whose home is `device` (slots not included)."""
        return sum(unit.bytes_on(device) for unit in self.units)

    def to_json(self, *, indent: int | None = None) -> str:
        """The plan as JSON text, to be stored, compared and read by `from_json`."""
        return _serial.dumps("plan", self, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> PlacementPlan:
        """Inverse of `to_json`.

        Raises:
            InvalidJsonError: the text is not what `to_json` writes.
            InvalidPlanError: it is, but the plan contradicts itself.
        """
        return _serial.loads("plan", cls, text)


def slot_bytes_of(unit: UnitPlacement, compute: str) -> int:
    """Bytes that the streamed tensors of a unit take in a slot."""
    return sum(aligned_bytes(home.size_bytes) for home in unit.homes if home.device != compute)


def check_seconds(name: str, seconds: float) -> None:
    """Refuse a duration that nothing can have.

    Raises:
        InvalidPlanError: it is negative or not finite; `name` says which argument it is.
    """
    if not (is_finite(seconds) and seconds >= 0):
        raise InvalidPlanError(f"{name} is {quoted(seconds)}; give finite seconds, 0 or more")


def _first_repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs for the second time, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
