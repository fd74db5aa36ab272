"""What can be asked of the machine: its accelerators, their memory, and how long copies between them take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import torch

from device_placement._errors import DeviceUnavailableError
from device_placement.machine import _copies, _cuda
from device_placement.machine._copies import copy_on
from device_placement.machine._host_memory import host_memory

_UNNUMBERED = ("cpu", "mps")
"""Types of which there is one device, named without an index in an allocation."""

_ROUNDS = 5


class Machine(Protocol):
    """A machine that can be probed."""

    def current(self) -> str:
        """Name of the accelerator that torch would use now, ``"cpu"`` on a machine without one."""

    def accelerators(self) -> tuple[str, ...]:
        """Names of all accelerators that torch counts, whether or not they work."""

    def accept(self, name: str) -> str:
        """Canonical name of a device that torch knows and that gives memory.

        Raises:
            DeviceUnavailableError: it does not.
        """

    def memory(self, name: str) -> tuple[int, int]:
        """Free and total bytes."""

    def label(self, name: str) -> str:
        """What a person calls it, or nothing."""

    def survives(self, source: str, target: str) -> bool:
        """Whether a pattern arrives unchanged when copied directly."""

    def copy_seconds(self, sources: Sequence[tuple[str, int]], target: str, *, direct: bool = True) -> float:
        """Fewest seconds in which bytes from all sources arrive, each over its own stream.

        Args:
            sources: pairs of a device and the bytes it sends.
            target: device that receives.
            direct: False takes two hops, through the host.
        """


class TorchMachine:
    """The machine that this process runs on."""

    def current(self) -> str:
        """Name of the current accelerator."""
        # Without the check torch names the accelerator that it was built for, present or not.
        device = torch.accelerator.current_accelerator(check_available=True)
        return "cpu" if device is None else self._numbered(device)

    def accelerators(self) -> tuple[str, ...]:
        """Names of all accelerators."""
        device = torch.accelerator.current_accelerator(check_available=True)
        if device is None:
            return ()
        if device.type in _UNNUMBERED:
            return (device.type,)
        return tuple(f"{device.type}:{index}" for index in range(torch.accelerator.device_count()))

    def accept(self, name: str) -> str:
        """Try the name and one allocation."""
        remedy = f"name one of {', '.join([*self.accelerators(), 'cpu'])}, or see diagnose() for why there are not more"
        try:
            device = torch.device(name.strip().lower())
            torch.empty(1, dtype=torch.uint8, device=device)
        except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
            raise DeviceUnavailableError(name, str(error).strip().splitlines()[0], remedy) from error
        if device.type == "meta":
            raise DeviceUnavailableError(name, "it holds no bytes", remedy)
        return self._numbered(device)

    def memory(self, name: str) -> tuple[int, int]:
        """Ask the module of the device type."""
        device = torch.device(name)
        if device.type == "cpu":
            return host_memory()
        module = torch.get_device_module(device)
        if device.type == "mps":
            total_bytes = int(module.recommended_max_memory())
            return max(0, min(total_bytes - int(module.driver_allocated_memory()), host_memory()[0])), total_bytes
        if not hasattr(module, "mem_get_info"):
            raise DeviceUnavailableError(
                name, "its torch module does not tell its memory", "describe the machine by hand with Hardware(...)"
            )
        free_bytes, total_bytes = module.mem_get_info(device)
        # What torch has cached is not free for others, but for us.
        cached_bytes = module.memory_reserved(device) - module.memory_allocated(device)
        return min(int(free_bytes + cached_bytes), int(total_bytes)), int(total_bytes)

    def label(self, name: str) -> str:
        """Ask the module of the device type."""
        device = torch.device(name)
        if device.type in _UNNUMBERED:
            return ""
        module = torch.get_device_module(device)
        return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else ""

    def survives(self, source: str, target: str) -> bool:
        """Send a pattern."""
        return _copies.survives(torch.device(source), torch.device(target))

    def copy_seconds(self, sources: Sequence[tuple[str, int]], target: str, *, direct: bool = True) -> float:
        """Fewest seconds of several rounds."""
        device = torch.device(target)
        jobs = [
            (self._source(name, size_bytes, device), torch.empty(size_bytes, dtype=torch.uint8, device=device))
            for name, size_bytes in sources
        ]
        streams = [torch.Stream(device) for _ in jobs] if len(jobs) > 1 else []
        best = float("inf")
        for _ in range(1 + _ROUNDS):  # the first one sets things up, and is slow enough not to win
            self._wait(jobs)
            start = time.perf_counter()
            for index, (source, arrived) in enumerate(jobs):
                if not direct:
                    _copies.through_host(source, arrived)
                elif streams:
                    copy_on(streams[index], source, arrived)
                else:
                    arrived.copy_(source, non_blocking=True)
            self._wait(jobs)
            best = min(best, time.perf_counter() - start)
        return best

    def _source(self, name: str, size_bytes: int, reader: torch.device) -> torch.Tensor:
        """Bytes to copy from, in pinned memory where the host gives it, as the engine would have them."""
        device = torch.device(name)
        if device.type == "cpu" and reader.type != "cpu":
            try:
                return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True)
            except RuntimeError:  # refused: normal under WSL, and then the engine copies from ordinary memory too
                if reader.type == "cuda":
                    _cuda.clear_error(reader)
        return torch.ones(size_bytes, dtype=torch.uint8, device=device)

    def _wait(self, jobs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for device in {tensor.device for job in jobs for tensor in job}:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)

    def _numbered(self, device: torch.device) -> str:
        if device.type in _UNNUMBERED:
            return device.type
        index = torch.accelerator.current_device_index() if device.index is None else device.index
        return f"{device.type}:{index}"
