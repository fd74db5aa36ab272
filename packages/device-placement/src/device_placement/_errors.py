"""The error tree of this package: messages name the thing, the reason and the remedy, and errors carry their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alloc_spec import human_size


class PlacementError(Exception):
    """Root of every error that this package raises. All of them can be pickled, data included."""

    def __reduce__(self) -> tuple[Callable[..., PlacementError], tuple[object, ...]]:
        """What pickle and copy make of it: the message alone would not tell the arguments it was made of."""
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[PlacementError], args: tuple[object, ...], data: Mapping[str, Any]) -> PlacementError:
    error = kind.__new__(kind, *args)
    vars(error).update(data)
    return error


def _needed(size_bytes: int) -> str:
    return human_size(max(0, size_bytes), rounding="up")


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
        what: a name for what does not fit.
        needed_bytes: bytes that must be there.
        available_bytes: bytes that may be used there.
        remedy: what would help.
        suggestion: an allocation that can be planned on the same machine, or None.
    """

    def __init__(
        self,
        *,
        device: str,
        what: str,
        needed_bytes: int,
        available_bytes: int,
        remedy: str,
        suggestion: str | None = None,
    ) -> None:
        self.device = device
        self.what = what
        self.needed_bytes = needed_bytes
        self.available_bytes = available_bytes
        self.remedy = remedy
        self.suggestion = suggestion
        fitting = "" if suggestion is None else f'\nthis would fit: "{suggestion}"'
        super().__init__(
            f"{device} is {_needed(self.missing_bytes)} too small: {what} need {_needed(needed_bytes)}, "
            f"{human_size(max(0, available_bytes), rounding='down')} are available. {remedy[:1].upper()}{remedy[1:]}"
            f"{fitting}"
        )

    def with_suggestion(self, suggestion: str) -> BudgetTooSmallError:
        """A copy that names an allocation which fits."""
        return BudgetTooSmallError(**(vars(self) | {"suggestion": suggestion}))

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


class PlanMismatchError(PlacementError):
    """A plan was made for another model than the one to be placed, or this model cannot be placed.

    Attributes:
        names: the tensors or modules in question.
    """

    def __init__(self, reason: str, names: Sequence[str], remedy: str) -> None:
        self.names = tuple(names)
        shown = ", ".join(repr(name) for name in self.names[:5])
        more = f" and {len(self.names) - 5} more" if len(self.names) > 5 else ""
        super().__init__(f"{reason}{': ' if shown else ''}{shown}{more}; {remedy}")


class DevicesFullError(PlacementError):
    """No device that was allowed to had room; everything is back where it was.

    Attributes:
        what: what found no room.
        needed_bytes: its size.
        refusals: what each device answered, in the order they were asked.
    """

    def __init__(self, what: str, needed_bytes: int, refusals: Mapping[str, str], remedy: str) -> None:
        self.what = what
        self.needed_bytes = needed_bytes
        self.refusals = dict(refusals)
        answers = "; ".join(f"{device}: {answer}" for device, answer in self.refusals.items())
        super().__init__(
            f"{what} needs {_needed(needed_bytes)} and no device has room ({answers}); every tensor is back where it "
            f"was; {remedy}"
        )


class HandleInvalidatedError(PlacementError):
    """The model was changed behind the back of its `PlacedModel`, so that running it would mix devices or weights.

    Attributes:
        names: the tensors that are not where they were placed.
    """

    def __init__(self, names: Sequence[str], reason: str) -> None:
        self.names = tuple(names)
        shown = ", ".join(repr(name) for name in self.names[:5])
        super().__init__(
            f"{shown} {reason} since the model was placed; call refresh() on its PlacedModel to bring every tensor "
            "home, or remove() to give the placement up"
        )


class HandleStateError(PlacementError):
    """A `PlacedModel`, or the model it placed, is not in a state that allows what was asked."""


class StreamedWriteError(PlacementError):
    """A forward wrote to a streamed tensor; streamed bytes are never copied back, so the change is lost.

    Attributes:
        unit: path of the unit.
        names: its streamed tensors.
    """

    def __init__(self, unit: str, names: Sequence[str]) -> None:
        self.unit = unit
        self.names = tuple(names)
        super().__init__(
            f"the forward of {unit!r} wrote to one of its streamed tensors ({', '.join(self.names[:5])}), which are "
            "read only: nothing is copied back; give what it writes (buffers, as a rule) a home on the compute device"
        )


class PeerCopyError(PlacementError):
    """Bytes do not survive the way between two accelerators, not even through the host.

    Attributes:
        source: the donor.
        target: the compute device.
    """

    def __init__(self, source: str, target: str) -> None:
        self.source = source
        self.target = target
        super().__init__(
            f"a test pattern copied from {source} to {target} arrived changed, directly and through the host; "
            f"take {source} off the donors and check its driver and hardware"
        )
