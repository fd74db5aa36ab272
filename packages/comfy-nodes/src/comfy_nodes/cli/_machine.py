"""The machine that a plan is for: described by hand on the command line, or this one.

Reading a description needs no torch; asking this machine does, and only then is it loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from alloc_spec import AllocationSpec, DeviceMemory, UnknownDeviceError
from comfy_nodes.cli._arguments import DeviceArgument, LinkArgument
from comfy_nodes.cli._exit import CommandError, ExitCode

if TYPE_CHECKING:
    from device_placement import Hardware

ASSUMED_GB_PER_SECOND = 12.0
"""Sustained host-to-device copies on PCIe 3.0 with 16 lanes or 4.0 with 8: the slower of what people have today."""


ELSEWHERE = (
    "`torchspan devices` says what this machine has and why; for another machine, describe its devices: "
    "--device {}=24gb --device cpu=64gb"
)


def choose_compute(asked: str | None, spec: AllocationSpec | None, names: Sequence[str]) -> str | None:
    """Choose the device that computes: asked for, or named in the allocation, or the first accelerator there is.

    Args:
        asked: the device of `--compute`, if any.
        spec: the allocation, if any.
        names: the devices of the machine in its order, if they are known.

    Returns:
        Its name; None when nothing was asked for and no devices are known.

    >>> from alloc_spec import parse
    >>> choose_compute(None, parse("cpu,4gb;cuda:1,*"), ["cpu", "cuda:0", "cuda:1"])
    'cuda:1'
    >>> choose_compute(None, None, ["cpu"])
    'cpu'
    """
    if asked is not None:
        return asked
    if spec is not None and spec.compute_device is not None:
        return spec.compute_device
    mentioned = spec.devices if spec is not None else ()
    accelerators = [name for name in (*mentioned, *names) if name != "cpu"]
    return next(iter((*accelerators, *names)), None)


def memory_of(devices: Sequence[DeviceArgument]) -> dict[str, DeviceMemory]:
    """Memory of the devices of the command line by name, or of this machine's where there are none.

    Raises:
        CommandError: a device is named twice.
    """
    if devices:
        _refuse_repeated("--device", [device.name for device in devices])
        return {device.name: DeviceMemory(total=device.total_bytes, free=device.free_bytes) for device in devices}
    from device_placement import probe

    return {
        device.name: DeviceMemory(total=device.total_bytes, free=device.free_bytes, reserve=device.reserve_bytes)
        for device in probe().devices
    }


def hardware_for(
    devices: Sequence[DeviceArgument],
    links: Sequence[LinkArgument],
    asked: str | None,
    spec: AllocationSpec | None,
) -> tuple[Hardware, list[str]]:
    """Describe the machine that a plan is for.

    Args:
        devices: the devices of the command line; none asks this machine.
        links: bandwidths from donors to the compute device, instead of those assumed or measured.
        asked: the device of `--compute`, if any.
        spec: the allocation, if any.

    Returns:
        The hardware, and a sentence for each link whose bandwidth had to be assumed.

    Raises:
        CommandError: a device or link contradicts the others (2), or this machine does not have the device (1).
    """
    _refuse_repeated("--device", [device.name for device in devices])
    _refuse_repeated("--link", [link.source for link in links])
    compute = choose_compute(asked, spec, [device.name for device in devices])
    if compute is not None and devices:
        hardware, assumed = _described(devices, compute), set(_donors(devices, compute))
    else:
        hardware, assumed = _probed(compute), set()
    for link in links:
        hardware = _with_rate(hardware, link)
    notes = [
        f"link {donor} -> {compute}: {ASSUMED_GB_PER_SECOND:g} GB/s assumed; give yours with --link {donor}=GBPS"
        for donor in hardware.donors
        if donor in assumed - {link.source for link in links}
    ]
    return hardware, notes


def _described(devices: Sequence[DeviceArgument], compute: str) -> Hardware:
    """The hardware of the command line, every link at the assumed bandwidth."""
    from device_placement import Device, Hardware, Link

    names = [device.name for device in devices]
    if compute not in names:
        raise CommandError(
            f"the compute device {compute} is not among the devices given ({', '.join(names)}); "
            f"add --device {compute}=TOTAL, or choose one of them with --compute",
            exit_code=ExitCode.USAGE,
        )
    return Hardware(
        compute=compute,
        devices=tuple(
            Device(name=device.name, total_bytes=device.total_bytes, free_bytes=device.free_bytes) for device in devices
        ),
        links=tuple(
            Link(source=donor, target=compute, gb_per_second=ASSUMED_GB_PER_SECOND)
            for donor in _donors(devices, compute)
        ),
    )


def _donors(devices: Sequence[DeviceArgument], compute: str) -> list[str]:
    return [device.name for device in devices if device.name != compute]


def _probed(compute: str | None) -> Hardware:
    """This machine, measured."""
    from device_placement import DeviceUnavailableError, probe

    try:
        return probe(compute)
    except DeviceUnavailableError as error:
        raise CommandError(
            f"{error.device} cannot be used here: {error.reason}\n{ELSEWHERE.format(error.device)}"
        ) from error


@contextmanager
def suggests_devices(described: Sequence[DeviceArgument]) -> Iterator[None]:
    """Where this machine was asked, add to the error about a device it lacks how to describe another one.

    Raises:
        CommandError: this machine does not have a device.
    """
    try:
        yield
    except UnknownDeviceError as error:
        if described:
            raise
        raise CommandError(f"{error}\n{ELSEWHERE.format(error.device)}") from error


def _with_rate(hardware: Hardware, given: LinkArgument) -> Hardware:
    """The same machine with the bandwidth of one link as given."""
    if given.source not in hardware.donors:
        donors = ", ".join(hardware.donors) or "none"
        raise CommandError(
            f"--link {given.source}: no bytes come from there (donors to {hardware.compute}: {donors}); "
            "name a donor, or add it with --device",
            exit_code=ExitCode.USAGE,
        )
    links = tuple(
        replace(link, gb_per_second=given.gb_per_second) if link.source == given.source else link
        for link in hardware.links
    )
    return replace(hardware, links=links)


def _refuse_repeated(option: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise CommandError(f"{option} {name} is given twice; keep one", exit_code=ExitCode.USAGE)
