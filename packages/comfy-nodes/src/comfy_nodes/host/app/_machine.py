"""This machine as the planner sees it through the host: devices, memory that can be made free, links."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import comfy.model_management as management
import torch

from comfy_nodes.host._errors import PlacementRefusedError, UnknownDeviceError
from device_placement import Device, Hardware, Link, probe

MIB = 1 << 20
MEASURED_BYTES = 32 * MIB
HOST_RESERVE_BYTES = 2048 * MIB
"""Left free in the host's memory, where the host keeps no reserve."""

_SINGLE = ("cpu", "mps")
"""Device types of which there is one, named without a number."""


def device_names() -> tuple[str, ...]:
    """Names of the devices that can compute or hold weights: the accelerators in order, then the cpu."""
    accelerator = None if management.cpu_mode() else torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ("cpu",)
    if accelerator.type in _SINGLE:
        return (accelerator.type, "cpu")
    return (*(f"{accelerator.type}:{index}" for index in range(torch.accelerator.device_count())), "cpu")


def known_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UnknownDeviceError: this machine does not have it; the message lists those there are.
    """
    canonical = name.strip().lower()
    names = device_names()
    if canonical not in names and f"{canonical}:0" in names:
        canonical = f"{canonical}:0"
    if canonical not in names:
        raise UnknownDeviceError(name, names)
    return torch.device(canonical)


def default_device() -> str:
    """Name of the device that the host computes on by default."""
    device = management.get_torch_device()
    return name_of(device)


def name_of(device: torch.device) -> str:
    """Name of a device in the allocation language: with a number, unless there can be only one."""
    return device.type if device.type in _SINGLE else f"{device.type}:{device.index or 0}"


def loaded_bytes(device: torch.device) -> int:
    """Bytes of the models that the host has loaded on a device and would move out for another."""
    return sum(model.loaded_size() for model in management.loaded_models() if model.load_device == device)


def reserve_bytes(name: str) -> int:
    """Memory that is not for weights: what the host keeps for activations on each device that it loads models to."""
    if name == "cpu":
        return min(HOST_RESERVE_BYTES, int(management.get_total_memory(torch.device("cpu"))) // 10)
    return int(management.minimum_inference_memory())


def machine(compute: str, donors: Sequence[str]) -> Hardware:
    """The devices of one placement, with the memory that the host can make free on them, and their links.

    Raises:
        UnknownDeviceError: a device is not there.
        PlacementRefusedError: a donor is the compute device.
    """
    if compute in donors:
        raise PlacementRefusedError(
            "a model",
            f"{compute} is to compute and to be its own donor",
            "name another donor, for example cpu",
        )
    names = (compute, *donors)
    devices = tuple(_described(name) for name in names)
    return Hardware(compute=compute, devices=devices, links=tuple(_link(donor, compute) for donor in donors))


def _described(name: str) -> Device:
    device = known_device(name)
    total = int(management.get_total_memory(device))
    free = int(management.get_free_memory(device)) + (0 if name == "cpu" else loaded_bytes(device))
    return Device(name=name, total_bytes=total, free_bytes=min(free, total), reserve_bytes=reserve_bytes(name))


@cache
def _link(donor: str, compute: str) -> Link:
    """A link as measured once in this process; measuring needs some memory on both sides for a moment."""
    (link,) = probe(compute, [donor], measure_bytes=MEASURED_BYTES).links
    return link
