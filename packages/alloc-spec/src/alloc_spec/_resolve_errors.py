"""Errors of `resolve`: a specification that does not go with a model and its devices."""

from typing import Self

from alloc_spec._errors import AllocSpecError
from alloc_spec._human import human_size


class AllocResolveError(AllocSpecError):
    """A specification that does not go with this model and these devices."""


class UnknownDeviceError(AllocResolveError):
    """A device that this machine does not have.

    Attributes:
        device: the name asked for.
        known: the names there are, in the order given to `resolve`.
        nearest: the known name most like it, or None.
        reason: why the device is needed.
    """

    def __init__(self, device: str, known: tuple[str, ...], nearest: str | None, reason: str) -> None:
        super().__init__(device, known, nearest, reason)
        self.device = device
        self.known = known
        self.nearest = nearest
        self.reason = reason

    def __str__(self) -> str:
        there_are = f"there are {', '.join(self.known)}" if self.known else "no devices were given"
        question = f' - did you mean "{self.nearest}"?' if self.nearest is not None else ""
        return f'no device "{self.device}" here ({self.reason}); {there_are}{question}'


class ComputeDeviceError(AllocResolveError):
    """Two different compute devices were named.

    Attributes:
        in_spec: the one inside the specification.
        given: the one passed to `resolve`.
    """

    def __init__(self, in_spec: str, given: str) -> None:
        super().__init__(in_spec, given)
        self.in_spec = in_spec
        self.given = given

    def __str__(self) -> str:
        return (
            f'the allocation computes on "{self.in_spec}" but compute_device="{self.given}" was passed; '
            "name the same device in both, or pass none"
        )


class NoSpaceError(AllocResolveError):
    """The bytes do not fit as asked; root of the three errors that can name an allocation which fits.

    Attributes:
        suggestion: an allocation that resolves on these devices, or None.
    """

    suggestion: str | None = None

    def with_suggestion(self, suggestion: str | None) -> Self:
        """Return a copy that names an allocation which fits."""
        *data, _ = self.args
        return type(self)(*data, suggestion)

    def _with_remedy(self, problem: str, otherwise: str) -> str:
        return f'{problem}\nthis would fit: "{self.suggestion}"' if self.suggestion else f"{problem}\n{otherwise}"


class ExceedsModelError(NoSpaceError):
    """More was to be moved by the simple controls than the model has.

    Attributes:
        asked_bytes: what was to be moved.
        model_bytes: size of the model.
        suggestion: an allocation that resolves on these devices, or None.
    """

    def __init__(self, asked_bytes: int, model_bytes: int, suggestion: str | None = None) -> None:
        super().__init__(asked_bytes, model_bytes, suggestion)
        self.asked_bytes = asked_bytes
        self.model_bytes = model_bytes
        self.suggestion = suggestion

    def __str__(self) -> str:
        return self._with_remedy(
            f"{_exact(self.asked_bytes)} are to be moved, but the model has only {_exact(self.model_bytes)}",
            "move at most the size of the model, and name donors with room for it",
        )


class NoRoomError(NoSpaceError):
    """Devices are to hold more than their room, which is free memory less reserve.

    Attributes:
        devices: the devices, together.
        wanted_bytes: what they are to hold.
        room_bytes: what they have room for.
        suggestion: an allocation that resolves on these devices, or None.
    """

    def __init__(
        self, devices: tuple[str, ...], wanted_bytes: int, room_bytes: int, suggestion: str | None = None
    ) -> None:
        super().__init__(devices, wanted_bytes, room_bytes, suggestion)
        self.devices = devices
        self.wanted_bytes = wanted_bytes
        self.room_bytes = room_bytes
        self.suggestion = suggestion

    @property
    def missing_bytes(self) -> int:
        """Bytes beyond the room."""
        return self.wanted_bytes - self.room_bytes

    def __str__(self) -> str:
        return self._with_remedy(
            f"{' and '.join(self.devices)} would hold {human_size(self.wanted_bytes)} but "
            f"{'has' if len(self.devices) == 1 else 'have'} room for {human_size(self.room_bytes)} "
            f"(free memory less reserve): {_exact(self.missing_bytes)} are missing",
            "free memory, lower the reserve, add a device, or use a smaller model",
        )


class NoHomeError(NoSpaceError):
    """A part of the model that the allocation puts nowhere.

    Attributes:
        missing_bytes: the part without a home.
        model_bytes: size of the model.
        amounts: device and bytes of what did find a home, in order.
        suggestion: an allocation that resolves on these devices, or None.
    """

    def __init__(
        self, missing_bytes: int, model_bytes: int, amounts: tuple[tuple[str, int], ...], suggestion: str | None = None
    ) -> None:
        super().__init__(missing_bytes, model_bytes, amounts, suggestion)
        self.missing_bytes = missing_bytes
        self.model_bytes = model_bytes
        self.amounts = amounts
        self.suggestion = suggestion

    def __str__(self) -> str:
        placed = ", ".join(f"{device} {human_size(size_bytes)}" for device, size_bytes in self.amounts)
        return self._with_remedy(
            f"{_exact(self.missing_bytes)} of a model of {human_size(self.model_bytes)} have no home ({placed})",
            "no device has room for them: free memory, add a device, or use a smaller model",
        )


def _exact(size_bytes: int) -> str:
    return f"{human_size(size_bytes)} ({size_bytes} bytes)"
