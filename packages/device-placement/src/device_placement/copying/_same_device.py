"""Every device is the CPU and nothing is copied: all bytes are at hand, and hooks are the only cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from device_placement.copying._backend import Transfer
from device_placement.machine._allocation import allocate_or_refuse


class SameDeviceBackend:
    """Resolves every device name to the CPU; forwards read the donors' buffers in place.

    Useful where donor and compute device share their memory, and to measure the engine alone.

    Example:
        >>> SameDeviceBackend().device("donor:0")
        device(type='cpu')
    """

    def device(self, name: str) -> torch.device:
        """The CPU, for every name."""
        return torch.device("cpu")

    def allocate(self, name: str, size_bytes: int) -> Tensor:
        """Ordinary CPU memory."""
        return allocate_or_refuse(size_bytes, torch.device("cpu"))

    def free_bytes(self, name: str) -> int | None:
        """None: only an attempt shows it."""
        return None

    def open(self, compute: str, donors: Mapping[str, int]) -> SharedMemory:
        """A streamer that never has to copy."""
        return SharedMemory()


class SharedMemory:
    """Streamer, gate and transfer in one: forwards read what the donors hold, so there is nothing to order or copy."""

    shares_memory = True

    def transfer(self, donor: str, source: Tensor, target: Tensor) -> SharedMemory:
        """Nothing is copied."""
        return self

    def gate(self, slot: Tensor) -> SharedMemory:
        """A gate that is always open."""
        return self

    def fill(self, transfers: Sequence[Transfer]) -> None:
        """The bytes are there."""

    def arrive(self) -> float:
        """No wait."""
        return 0.0

    def release(self) -> None:
        """Nobody waits."""

    def synchronize(self) -> None:
        """Nothing runs beside the host."""

    def restart(self) -> None:
        """Nothing was under way."""

    def close(self) -> None:
        """Nothing to give back."""
