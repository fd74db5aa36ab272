"""Memory of one device, as the caller measured it."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from alloc_spec._amounts import check_size
from alloc_spec._device_names import likely_device
from alloc_spec._errors import AllocValueError
from alloc_spec._resolve_errors import UnknownDeviceError


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """Memory of one device in bytes.

    Attributes:
        total: all of it.
        free: what is free, or can be made free, for the model.
        reserve: what must stay free of the model, for activations and other programs.

    Raises:
        AllocValueError: not whole numbers, negative, or more free than there is.

    >>> DeviceMemory(total=24 * 2**30, free=20 * 2**30, reserve=2**30).room // 2**30
    19
    """

    total: int
    free: int
    reserve: int = 0

    def __post_init__(self) -> None:
        check_size("total", self.total)
        check_size("free", self.free)
        check_size("reserve", self.reserve)
        if self.free > self.total:
            reason = f"more than the total of {self.total} bytes; pass the free memory measured on the same device"
            raise AllocValueError("free", self.free, reason)

    @property
    def room(self) -> int:
        """Bytes that a model may use: free less reserve, and never less than nothing."""
        return max(0, self.free - self.reserve)


def require_device(name: str, devices: Mapping[str, DeviceMemory], reason: str) -> None:
    """Refuse a device that is not there.

    Raises:
        UnknownDeviceError: it is not; with the names there are and the one most like it.
    """
    if name in devices:
        return
    meant = likely_device(name)
    nearest = meant if meant in devices else next(iter(difflib.get_close_matches(name, devices, n=1)), None)
    raise UnknownDeviceError(name, tuple(devices), nearest, reason)
