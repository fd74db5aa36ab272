"""Measure the machine: which devices there are, what they have room for, and how fast the compute device gets bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from device_placement._errors import DeviceUnavailableError, InvalidHardwareError
from device_placement._hardware import Device, Hardware, Link
from device_placement.machine._torch_machine import Machine, TorchMachine

_log = logging.getLogger(__name__)

MIB = 1 << 20
SMALL_BYTES = 4096
"""A copy of one page: its time is the latency."""

SHARED_SLOWDOWN = 1.5
"""Two copies that take 1 alone and more than this together share a link: 2 would be taking turns, 1 independence."""


def probe(
    compute: str | None = None,
    donors: Sequence[str] | None = None,
    *,
    measure_bytes: int = 64 * MIB,
    reserve_bytes: Mapping[str, int] | None = None,
) -> Hardware:
    """Measure this machine.

    A device is listed if torch knows its name and it gives memory. Links are measured with copies, as the engine
    makes them: pinned memory where the host gives it, several rounds, the fastest counts. Copies between accelerators
    are checked by a pattern first; where bytes arrive changed, the link is measured through the host and marked as
    not verified. Two donors whose copies slow each other down share an ingress.

    Args:
        compute: device that is to run the forwards; by default the current accelerator, or the cpu without one.
        donors: devices that may hold weights; by default the other accelerators and the cpu.
        measure_bytes: size of the copies that measure bandwidth; each link needs that much on both sides for a
            moment.
        reserve_bytes: memory to leave alone by device; `default_reserve_bytes` where it says nothing.

    Raises:
        DeviceUnavailableError: a device that was asked for is not there or gives no memory.
        InvalidHardwareError: a donor is the compute device, or named twice.
    """
    return probe_machine(
        TorchMachine(), compute, donors, measure_bytes=measure_bytes, reserve_bytes=reserve_bytes or {}
    )


def probe_machine(
    machine: Machine,
    compute: str | None,
    donors: Sequence[str] | None,
    *,
    measure_bytes: int,
    reserve_bytes: Mapping[str, int],
) -> Hardware:
    """`probe` on any machine."""
    if measure_bytes <= SMALL_BYTES:
        raise InvalidHardwareError(
            f"{measure_bytes} bytes are too few to measure a bandwidth with; use more than {SMALL_BYTES}"
        )
    target = machine.accept(compute or machine.current())
    names = _found_donors(machine, target) if donors is None else [machine.accept(name) for name in donors]
    if target in names:
        raise InvalidHardwareError(f"{target!r} is the compute device; a donor must be another device")
    devices = tuple(
        _device(machine, name, is_compute=name == target, reserve_bytes=reserve_bytes) for name in (target, *names)
    )
    links = [_link(machine, name, target, measure_bytes) for name in names]
    return Hardware(compute=target, devices=devices, links=_with_ingress(machine, links, measure_bytes))


def default_reserve_bytes(name: str, total_bytes: int, *, is_compute: bool) -> int:
    """Memory that is left alone where nobody says how much.

    On the compute device a tenth for activations, from 512 MiB to 2 GiB; on another accelerator 256 MiB; on the host
    a tenth, from 1 to 8 GiB. Never more than a quarter of the device.

    >>> default_reserve_bytes("cuda:0", 24 << 30, is_compute=True) >> 20
    2048
    """
    if name == "cpu":
        wanted = min(max(total_bytes // 10, 1024 * MIB), 8192 * MIB)
    elif is_compute:
        wanted = min(max(total_bytes // 10, 512 * MIB), 2048 * MIB)
    else:
        wanted = 256 * MIB
    return min(wanted, total_bytes // 4)


def _found_donors(machine: Machine, target: str) -> list[str]:
    """Every other device that works; the host last, and nothing for a model that computes on the host."""
    found = []
    for name in (*machine.accelerators(), "cpu") if target != "cpu" else ():
        try:
            accepted = machine.accept(name)
        except DeviceUnavailableError as error:
            _log.warning("%s", error)
        else:
            found += [accepted] if accepted != target else []
    return found


def _device(machine: Machine, name: str, *, is_compute: bool, reserve_bytes: Mapping[str, int]) -> Device:
    free_bytes, total_bytes = machine.memory(name)
    reserve = reserve_bytes.get(name, default_reserve_bytes(name, total_bytes, is_compute=is_compute))
    return Device(
        name=name,
        total_bytes=total_bytes,
        free_bytes=min(free_bytes, total_bytes),
        reserve_bytes=reserve,
        label=machine.label(name),
    )


def _link(machine: Machine, source: str, target: str, measure_bytes: int) -> Link:
    """Latency and bandwidth of the way that the engine will take."""
    verified = "cpu" in (source, target) or machine.survives(source, target)
    if not verified:
        _log.warning("bytes from %s arrive changed on %s; they will go through the host", source, target)
    latency = machine.copy_seconds([(source, SMALL_BYTES)], target, direct=verified)
    seconds = machine.copy_seconds([(source, measure_bytes)], target, direct=verified)
    # A clock too coarse to see the difference leaves the time of the whole copy, which cannot be too fast.
    moving = seconds - latency if seconds > latency else seconds
    return Link(
        source=source,
        target=target,
        gb_per_second=(measure_bytes - SMALL_BYTES) / moving / 1e9,
        latency_seconds=latency,
        verified=verified,
    )


def _with_ingress(machine: Machine, links: Sequence[Link], measure_bytes: int) -> tuple[Link, ...]:
    """Name the ingress of each link: that of an earlier one which it slows down, else a new one."""
    named: list[Link] = []
    for link in reversed(links):  # the host comes last, and gives the shared ingress its name
        ingress = "host" if link.source == "cpu" or not link.verified else f"from {link.source}"
        for other in named if link.verified else ():
            if other.verified and _take_turns(machine, link, other, measure_bytes):
                ingress = other.ingress
                break
        named.append(replace(link, ingress=ingress))
    return tuple(reversed(named))


def _take_turns(machine: Machine, a: Link, b: Link, measure_bytes: int) -> bool:
    """Copy over both links at once what takes each the same time alone; twice that time is taking turns."""
    fastest = max(a.gb_per_second, b.gb_per_second)
    sizes = {link: max(SMALL_BYTES, int(measure_bytes * link.gb_per_second / fastest)) for link in (a, b)}
    together = machine.copy_seconds([(link.source, size) for link, size in sizes.items()], a.target)
    return together > SHARED_SLOWDOWN * max(link.copy_seconds(size) for link, size in sizes.items())
