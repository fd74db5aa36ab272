"""The devices of this machine for people, and giving their memory back."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management as management
import torch

from comfy_nodes.host.app._machine import device_names, known_device, loaded_bytes

__all__ = ["DeviceInfo", "available_devices", "device_names", "release"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceInfo:
    """One device and its memory, in bytes.

    Attributes:
        name: as allocations name it.
        label: what the host calls it.
        total_bytes: all of it.
        free_bytes: free now.
        loaded_bytes: taken by models that the host would move out for another.
    """

    name: str
    label: str
    total_bytes: int
    free_bytes: int
    loaded_bytes: int


def available_devices() -> tuple[DeviceInfo, ...]:
    """Every device that can compute or hold weights, the cpu last."""
    return tuple(_described(name) for name in device_names())


def release(device: str | None = None) -> int:
    """Move all models off a device, or off every device, into the host's memory.

    Returns:
        Bytes of weights that left.

    Raises:
        UnknownDeviceError: this machine does not have it.
    """
    names = device_names() if device is None else (device,)
    freed = 0
    for name in names:
        target = known_device(name)
        if target.type == "cpu":
            continue
        before = loaded_bytes(target)
        management.free_memory(1e30, target)
        freed += before - loaded_bytes(target)
    management.soft_empty_cache()
    return freed


def _described(name: str) -> DeviceInfo:
    device: torch.device = known_device(name)
    return DeviceInfo(
        name=name,
        label=str(management.get_torch_device_name(device)),
        total_bytes=int(management.get_total_memory(device)),
        free_bytes=int(management.get_free_memory(device)),
        loaded_bytes=loaded_bytes(device),
    )
