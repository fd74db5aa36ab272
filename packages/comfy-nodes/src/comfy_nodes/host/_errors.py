"""The errors of the host adapter: the thing, the reason, the remedy. Nothing is half-loaded when one is raised."""

from __future__ import annotations

from collections.abc import Sequence


class HostError(Exception):
    """Root of every error that this package raises itself.

    Errors of the allocation language (`alloc_spec.AllocSpecError`) and of the planner
    (`device_placement.PlacementError`) pass through unchanged: they have their place and their remedy already.
    """


class UnknownDeviceError(HostError):
    """A workflow names a device that this machine does not have.

    Attributes:
        device: the name asked for.
        known: the names there are.
    """

    def __init__(self, device: str, known: Sequence[str]) -> None:
        self.device = device
        self.known = tuple(known)
        super().__init__(
            f"device {device!r} is not on this machine, which has {', '.join(self.known)}; choose one of these "
            "(the workflow was probably saved on another machine)"
        )


class ModelFileError(HostError):
    """A file cannot be the model that was asked for.

    Attributes:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: object, reason: str, remedy: str) -> None:
        self.path = str(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}; {remedy}")


class PlacementRefusedError(HostError):
    """A model can be loaded, but not placed as asked.

    Attributes:
        subject: the model or request.
        reason: why not.
    """

    def __init__(self, subject: str, reason: str, remedy: str) -> None:
        self.subject = subject
        self.reason = reason
        super().__init__(f"{subject} cannot be placed as asked: {reason}; {remedy}")
