"""The machine as the planner sees it: devices with memory, and links between them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from device_placement import _serial
from device_placement._errors import InvalidHardwareError, UnknownDeviceError, UnknownLinkError
from device_placement._numbers import is_count, is_finite, quoted


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One place that can hold bytes.

    Attributes:
        name: device name as in an allocation spec (``"cuda:0"``, ``"cpu"``).
        total_bytes: all memory of the device.
        free_bytes: memory free when it was measured.
        reserve_bytes: memory the planner must leave alone (activations, the desktop, other programs).
        label: what a person calls it (``"NVIDIA H100"``), may be empty.

    Raises:
        InvalidHardwareError: no name, a negative size, or more free than total.
    """

    name: str
    total_bytes: int
    free_bytes: int
    reserve_bytes: int = 0
    label: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidHardwareError("a device has no name; name it as an allocation spec does, for example 'cuda:0'")
        for field in ("total_bytes", "free_bytes", "reserve_bytes"):
            if not is_count(getattr(self, field)):
                raise InvalidHardwareError(
                    f"{field} of {self.name} is {quoted(getattr(self, field))}; give whole bytes from 0 to 2^63 - 1"
                )
        if self.free_bytes > self.total_bytes:
            raise InvalidHardwareError(
                f"{self.name} has more free ({self.free_bytes} bytes) than total ({self.total_bytes} bytes); "
                "pass the free memory measured on the same device"
            )

    @property
    def usable_bytes(self) -> int:
        """What the planner may fill: free memory less the reserve, never below 0."""
        return max(0, self.free_bytes - self.reserve_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How bytes get from a donor to the compute device.

    Attributes:
        source: name of the donor.
        target: name of the compute device.
        gb_per_second: sustained bandwidth in 1e9 bytes a second.
        latency_seconds: fixed cost of one copy.
        ingress: links that share one ingress of the target take turns (two PCIe donors of one GPU do not add up).
        verified: False for a peer copy whose checksum test failed; the engine then goes through the host.

    Raises:
        InvalidHardwareError: a link to itself, or a bandwidth or latency that no link can have.
    """

    source: str
    target: str
    gb_per_second: float
    latency_seconds: float = 20e-6
    ingress: str = "host"
    verified: bool = True

    def __post_init__(self) -> None:
        pair = f"link {self.source!r} -> {self.target!r}"
        if self.source == self.target:
            raise InvalidHardwareError(
                f"{pair} leads to itself; a donor must be another device than the compute device"
            )
        if not (is_finite(self.gb_per_second) and self.gb_per_second > 0):
            raise InvalidHardwareError(
                f"{pair} has {quoted(self.gb_per_second)} GB/s; give its bandwidth in 1e9 bytes a second, above 0"
            )
        if not (is_finite(self.latency_seconds) and self.latency_seconds >= 0):
            raise InvalidHardwareError(
                f"{pair} has a latency of {quoted(self.latency_seconds)} s; give seconds a copy, 0 or more"
            )

    def copy_seconds(self, size_bytes: int) -> float:
        """Seconds that one copy of `size_bytes` occupies the link.

        >>> Link(source="cpu", target="cuda:0", gb_per_second=25, latency_seconds=0).copy_seconds(50_000_000)
        0.002
        """
        return size_bytes / (self.gb_per_second * 1e9) + self.latency_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A compute device, its donors and the links between them, measured by `probe` or written by hand.

    Attributes:
        compute: name of the device that runs every forward.
        devices: the compute device and the donors, each once.
        links: at most one a pair of devices.

    Raises:
        InvalidHardwareError: a device twice, a link twice, or a name that is not among the devices.

    Example:
        >>> hardware = Hardware(
        ...     compute="cuda:0",
        ...     devices=(
        ...         Device(name="cuda:0", total_bytes=24 << 30, free_bytes=22 << 30, reserve_bytes=1 << 30),
        ...         Device(name="cpu", total_bytes=64 << 30, free_bytes=48 << 30),
        ...     ),
        ...     links=(Link(source="cpu", target="cuda:0", gb_per_second=25),),
        ... )
        >>> hardware.donors, hardware.device("cuda:0").usable_bytes >> 30
        (('cpu',), 21)
        >>> Hardware.from_json(hardware.to_json()) == hardware
        True
    """

    compute: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        for name in names:
            if names.count(name) > 1:
                raise InvalidHardwareError(f"device {name!r} is described twice; keep one of the two")
        if self.compute not in names:
            raise InvalidHardwareError(
                f"the compute device {self.compute!r} is not among the devices ({', '.join(names) or 'none'}); add it"
            )
        pairs = [(link.source, link.target) for link in self.links]
        for source, target in pairs:
            if pairs.count((source, target)) > 1:
                raise InvalidHardwareError(f"the link {source!r} -> {target!r} is described twice; keep one of the two")
            for end in (source, target):
                if end not in names:
                    raise InvalidHardwareError(
                        f"the link {source!r} -> {target!r} ends at {end!r}, which is not among the devices "
                        f"({', '.join(names)}); add the device or drop the link"
                    )

    @property
    def donors(self) -> tuple[str, ...]:
        """Names of all devices but the compute device, in order."""
        return tuple(device.name for device in self.devices if device.name != self.compute)

    def device(self, name: str) -> Device:
        """The device of that name.

        Raises:
            UnknownDeviceError: no such device; the message lists the known ones.
        """
        for device in self.devices:
            if device.name == name:
                return device
        raise UnknownDeviceError(name, [device.name for device in self.devices])

    def link(self, source: str, target: str) -> Link:
        """The link from `source` to `target`.

        Raises:
            UnknownLinkError: it is not described; the message lists those that are.
        """
        for link in self.links:
            if (link.source, link.target) == (source, target):
                return link
        raise UnknownLinkError(source, target, [(link.source, link.target) for link in self.links])

    def reclaiming(self, name: str, size_bytes: int) -> Hardware:
        """The same machine with `size_bytes` more free on one device, at most its total.

        A model that is already loaded will be moved, not copied: what it occupies now counts as free for its plan.

        Raises:
            UnknownDeviceError: there is no device of that name.
        """
        device = self.device(name)
        freed = replace(device, free_bytes=min(device.total_bytes, device.free_bytes + size_bytes))
        return replace(self, devices=tuple(freed if other is device else other for other in self.devices))

    def to_json(self, *, indent: int | None = None) -> str:
        """The hardware as JSON text, to be stored and read by `from_json`."""
        return _serial.dumps("hardware", self, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Hardware:
        """Inverse of `to_json`.

        Raises:
            InvalidJsonError: the text is not what `to_json` writes.
            InvalidHardwareError: it is, but describes a machine that cannot exist.
        """
        return _serial.loads("hardware", cls, text)
