"""What this process can find out about why it sees the accelerators that it sees."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from device_placement.machine import _cuda
from device_placement.machine._torch_machine import TorchMachine

VISIBILITY_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")
"""Environment variables that hide devices from a process."""

_ROOT = Path("/")
_VENDORS = {"0x10de": "NVIDIA", "0x1002": "AMD", "0x8086": "Intel"}
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x0380")


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFacts:
    """Everything that `findings` looks at.

    Attributes:
        torch_version: of the torch that runs.
        built_for: the accelerators that this torch was built for (``"CUDA 13.0"``, ``"ROCm 6.4"``, ``"XPU"``,
            ``"MPS"``).
        accelerators: names of the devices that torch counts.
        refusal: what torch answers when CUDA is started although it sees no device; None where that was not tried.
        variables: the visibility variables that are set.
        gpus_on_bus: makers of the display adapters on the PCI bus; None where that cannot be read.
        nvidia_driver: whether the kernel has NVIDIA's driver loaded.
        nvidia_nodes: how many NVIDIA device files there are.
        kernel: what the kernel calls itself.
        unreachable_peers: pairs (reader, owner) of CUDA devices that cannot read each other's memory.
    """

    torch_version: str
    built_for: tuple[str, ...]
    accelerators: tuple[str, ...]
    refusal: str | None
    variables: Mapping[str, str]
    gpus_on_bus: tuple[str, ...] | None
    nvidia_driver: bool
    nvidia_nodes: int
    kernel: str
    unreachable_peers: tuple[tuple[str, str], ...]

    @property
    def is_wsl(self) -> bool:
        """Whether this is Linux inside Windows."""
        return "microsoft" in self.kernel.lower()


def gather(root: Path = _ROOT, environment: Mapping[str, str] = os.environ) -> SystemFacts:
    """Look at torch, the environment and the system.

    Args:
        root: where ``proc``, ``sys`` and ``dev`` are; for tests.
        environment: the environment variables.
    """
    accelerators = TorchMachine().accelerators()
    built_for = _built_for()
    tries_cuda = not accelerators and (torch.version.cuda is not None or torch.version.hip is not None)
    return SystemFacts(
        torch_version=str(torch.__version__),
        built_for=built_for,
        accelerators=accelerators,
        refusal=_cuda.unavailable_reason() if tries_cuda else None,
        variables={name: environment[name] for name in VISIBILITY_VARIABLES if name in environment},
        gpus_on_bus=_gpus_on_bus(root),
        nvidia_driver=(root / "proc/driver/nvidia/version").exists() or (root / "dev/dxg").exists(),
        nvidia_nodes=len(list(root.glob("dev/nvidia[0-9]*"))),
        kernel=platform.release(),
        unreachable_peers=_unreachable_peers(accelerators),
    )


def _built_for() -> tuple[str, ...]:
    builds = {
        f"CUDA {torch.version.cuda}": torch.version.cuda is not None,
        f"ROCm {torch.version.hip}": torch.version.hip is not None,
        "XPU": bool(torch.xpu._is_compiled()),
        "MPS": torch.backends.mps.is_built(),
    }
    return tuple(name for name, built in builds.items() if built)


def _gpus_on_bus(root: Path) -> tuple[str, ...] | None:
    """Makers of the display adapters; None where there is no PCI bus to read."""
    devices = root / "sys/bus/pci/devices"
    if not devices.is_dir():
        return None
    makers = []
    for folder in sorted(devices.iterdir()):
        try:
            kind = (folder / "class").read_text(encoding="ascii").strip()
            vendor = (folder / "vendor").read_text(encoding="ascii").strip()
        except OSError:  # a device that went away, or may not be read
            continue
        if kind.startswith(_DISPLAY_CLASSES) and vendor in _VENDORS:
            makers.append(_VENDORS[vendor])
    return tuple(makers)


def _unreachable_peers(accelerators: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    cuda = [torch.device(name) for name in accelerators if name.startswith("cuda")]
    return tuple(
        (str(reader), str(owner))
        for reader in cuda
        for owner in cuda
        if reader != owner and not _cuda.can_access_peer(reader, owner)
    )
