"""The machine as the planner sees it: devices with memory, and links between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One place that can hold bytes.

    Attributes:
        name: device name as in an allocation spec (``"cuda:0"``, ``"cpu"``).
        total_bytes: all memory of the device.
        free_bytes: memory free when it was measured.
        reserve_bytes: memory the planner must leave alone (activations, the desktop, other programs).
        label: what a person calls it (``"NVIDIA H100"``), may be empty.
    """

    name: str
    total_bytes: int
    free_bytes: int
    reserve_bytes: int = 0
    label: str = ""


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
    """

    source: str
    target: str
    gb_per_second: float
    latency_seconds: float = 20e-6
    ingress: str = "host"
    verified: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A compute device, its donors and the links between them, measured by `probe` or written by hand."""

    compute: str
    devices: tuple[Device, ...]
    links: tuple[Link, ...] = ()
