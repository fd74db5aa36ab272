"""The error tree of this package: messages name the thing, the reason and the remedy, and errors carry their data."""

from __future__ import annotations

from collections.abc import Sequence


class PlacementError(Exception):
    """Root of every error that this package raises."""


class InvalidHardwareError(PlacementError, ValueError):
    """A `Device`, `Link` or `Hardware` was described in a way that cannot exist."""


class InvalidPlanError(PlacementError, ValueError):
    """A plan, an estimate or an argument of the planner contradicts itself."""


class UnknownDeviceError(PlacementError):
    """A device is named that the hardware does not have.

    Attributes:
        device: the name that was asked for.
        known: the names there are.
    """

    def __init__(self, device: str, known: Sequence[str]) -> None:
        self.device = device
        self.known = tuple(known)
        listed = ", ".join(self.known) or "none"
        super().__init__(
            f"device {device!r} is not part of the hardware (it has: {listed}); name one of these or probe again"
        )


class UnknownLinkError(PlacementError):
    """Bytes would travel between two devices whose link is not described.

    Attributes:
        source: the donor.
        target: the compute device.
        known: the (source, target) pairs there are.
    """

    def __init__(self, source: str, target: str, known: Sequence[tuple[str, str]]) -> None:
        self.source = source
        self.target = target
        self.known = tuple(known)
        listed = ", ".join(f"{a} -> {b}" for a, b in self.known) or "none"
        super().__init__(
            f"no link from {source!r} to {target!r} in the hardware (links: {listed}); "
            f"measure it with probe(compute={target!r}, donors=[{source!r}]) or add a Link by hand"
        )


class BudgetTooSmallError(PlacementError):
    """Bytes have no home, or do not fit where they were asked to be.

    Attributes:
        device: the device that is too small.
        what: what does not fit, in words.
        needed_bytes: bytes that must be there.
        available_bytes: bytes that may be used there.
        remedy: what would fit.
    """

    def __init__(self, *, device: str, what: str, needed_bytes: int, available_bytes: int, remedy: str) -> None:
        self.device = device
        self.what = what
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.remedy = remedy
        super().__init__(
            f"{what} need {needed_bytes} bytes on {device} but {available_bytes} bytes may be used there: "
            f"{self.missing_bytes} bytes are missing; {remedy}"
        )

    @property
    def missing_bytes(self) -> int:
        """Bytes that have no room."""
        return self.needed_bytes - self.available_bytes


class DeviceUnavailableError(PlacementError):
    """A device exists as a name but refuses to be used.

    Attributes:
        device: its name.
        reason: what it answered.
    """

    def __init__(self, device: str, reason: str, remedy: str) -> None:
        self.device = device
        self.reason = reason
        super().__init__(f"device {device!r} cannot be used: {reason}; {remedy}")


class InvalidJsonError(PlacementError, ValueError):
    """A JSON text is not what this package writes.

    Attributes:
        where: path of the offending value (``"units[3].homes[0].size_bytes"``), empty for the whole text.
    """

    def __init__(self, where: str, reason: str) -> None:
        self.where = where
        super().__init__(f"{where or 'the text'}: {reason}; write it with to_json() of this version")
