"""The machine that a plan is for: described by hand on the command line, or this one.

Reading a description needs no torch; asking this machine does, and only then is it loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alloc_spec import AllocationSpec, DeviceMemory
from comfy_nodes.cli._arguments import DeviceArgument, LinkArgument
from comfy_nodes.cli._exit import CommandError, ExitCode

if TYPE_CHECKING:
    from device_placement import Hardware

ASSUMED_GB_PER_SECOND = 12.0
"""Sustained host-to-device copies on PCIe 3.0 with 16 lanes or 4.0 with 8: the slower of what people have today."""


def choose_compute(asked: str | None, spec: AllocationSpec | None, names: Sequence[str]) -> str:
    """Choose the device that computes: asked for, or named in the allocation, or the first accelerator there is.

    Args:
        asked: the device of `--compute`, if any.
        spec: the allocation, if any.
        names: the devices of the machine, in its order.

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
    return accelerators[0] if accelerators else "cpu"


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


def described_hardware(
    devices: Sequence[DeviceArgument], links: Sequence[LinkArgument], compute: str
) -> tuple[Hardware, list[str]]:
    """Put the devices and links of the command line together.

    Args:
        devices: at least one, each named once.
        links: bandwidths of some of them to the compute device.
        compute: name of the device that computes.

    Returns:
        The hardware, and a sentence for each link whose bandwidth had to be assumed.

    Raises:
        CommandError: a device or link is named twice, or one that is not among the devices.
    """
    from device_placement import Device, Hardware, Link

    names = [device.name for device in devices]
    rates = {link.source: link.gb_per_second for link in links}
    _refuse_repeated("--device", names)
    _refuse_repeated("--link", [link.source for link in links])
    if compute not in names:
        raise _unknown_device(f"the compute device {compute}", names, f"add --device {compute}=TOTAL")
    for source in rates:
        if source not in names:
            raise _unknown_device(f"--link {source}", names, f"add --device {source}=TOTAL")
        if source == compute:
            raise CommandError(
                f"--link {source}: the compute device needs no link to itself; name the donor that sends the bytes",
                exit_code=ExitCode.USAGE,
            )
    donors = [name for name in names if name != compute]
    notes = [
        f"link {donor} -> {compute}: {ASSUMED_GB_PER_SECOND:g} GB/s assumed; give yours with --link {donor}=GBPS"
        for donor in donors
        if donor not in rates
    ]
    return Hardware(
        compute=compute,
        devices=tuple(
            Device(name=device.name, total_bytes=device.total_bytes, free_bytes=device.free_bytes) for device in devices
        ),
        links=tuple(
            Link(source=donor, target=compute, gb_per_second=rates.get(donor, ASSUMED_GB_PER_SECOND))
            for donor in donors
        ),
    ), notes


def _refuse_repeated(option: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise CommandError(f"{option} {name} is given twice; keep one", exit_code=ExitCode.USAGE)


def _unknown_device(what: str, names: Sequence[str], remedy: str) -> CommandError:
    return CommandError(
        f"{what} is not among the devices given ({', '.join(names)}); {remedy}", exit_code=ExitCode.USAGE
    )
