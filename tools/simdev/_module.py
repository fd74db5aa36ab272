"""The device module `torch.<name>`: what libraries look for beside the device itself, as they do in `torch.cuda`."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from simdev._library import Library

DeviceLike = torch.device | str | int | None


class DeviceModule(types.ModuleType):
    """Registered with torch under the name of the backend, and the one place that holds the native library.

    Whatever can be asked through `torch.accelerator` is answered by it; the rest are the names of `torch.cuda` that
    diffusion code asks every device module for.
    """

    OutOfMemoryError = torch.OutOfMemoryError
    Stream: type[torch.Stream]

    def __init__(self, name: str, library: Library, count: int) -> None:
        """Prepare the module of a backend called `name` with `count` devices."""
        super().__init__(f"torch.{name}", f"{count} simulated devices")
        self.backend = name
        self.library = library
        self.count = count
        self.visible = True
        self.Stream = _stream_class(self)

    def index(self, device: DeviceLike = None) -> int:
        """Return the index of a device given in any form; None and "no index" mean the current one."""
        if isinstance(device, int):
            return device
        index = None if device is None else torch.device(device).index
        return torch.accelerator.current_device_index() if index is None else index

    def is_available(self) -> bool:
        """Say whether there are devices to be seen; `torch.accelerator` asks here."""
        return self.visible

    def is_initialized(self) -> bool:
        """Say that nothing is left to be set up on first use."""
        return True

    def _lazy_init(self) -> None:
        """Do nothing: there is nothing to set up on first use."""

    def _is_in_bad_fork(self) -> bool:
        """Say that a forked child may use the devices: they are memory of the process."""
        return False

    def device_count(self) -> int:
        """Return the number of devices to be seen; `torch.accelerator` asks here."""
        return self.count if self.visible else 0

    def current_device(self) -> int:
        """Return the index of the current device of this thread."""
        return torch.accelerator.current_device_index()

    def set_device(self, device: DeviceLike) -> None:
        """Make a device the current one of this thread."""
        torch.accelerator.set_device_index(self.index(device))

    @contextmanager
    def device(self, device: DeviceLike) -> Iterator[None]:
        """Make a device the current one inside a `with`."""
        previous = torch.accelerator.current_device_index()
        self.set_device(device)
        try:
            yield
        finally:
            torch.accelerator.set_device_index(previous)

    @contextmanager
    def stream(self, stream: torch.Stream | None) -> Iterator[None]:
        """Make a stream and its device the current ones inside a `with`; None changes nothing."""
        if stream is None:
            yield
            return
        device = torch.accelerator.current_device_index()
        previous = torch.accelerator.current_stream(stream.device.index)
        torch.accelerator.set_stream(stream)
        try:
            yield
        finally:
            torch.accelerator.set_stream(previous)
            torch.accelerator.set_device_index(device)

    # A method with the name of a class: torch measures time only between events of one class.
    def Event(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> torch.Event:
        """Make an event of the current device, as `torch.cuda.Event` does."""
        device = torch.device(self.backend)
        return torch.Event(device, enable_timing=enable_timing, blocking=blocking, interprocess=interprocess)

    def current_stream(self, device: DeviceLike = None) -> torch.Stream:
        """Return the current stream of a device in this thread."""
        return torch.accelerator.current_stream(self.index(device))

    def default_stream(self, device: DeviceLike = None) -> torch.Stream:
        """Return the stream a device starts with."""
        current = self.current_stream(device)
        return torch.Stream(stream_id=0, device_index=current.device_index, device_type=current.device_type)

    def set_stream(self, stream: torch.Stream) -> None:
        """Make a stream and its device the current ones of this thread."""
        torch.accelerator.set_stream(stream)

    def synchronize(self, device: DeviceLike = None) -> None:
        """Wait for everything that was issued to a device."""
        torch.accelerator.synchronize(self.index(device))

    def empty_cache(self) -> None:
        """Do nothing: freed memory is free at once."""

    def memory_stats(self, device: DeviceLike = None) -> dict[str, Any]:
        """Return what `torch.accelerator.memory_stats` knows of a device."""
        return dict(torch.accelerator.memory_stats(self.index(device)))

    def memory_allocated(self, device: DeviceLike = None) -> int:
        """Return the bytes in use on a device."""
        return self.library.memory(self.index(device))[0]

    def max_memory_allocated(self, device: DeviceLike = None) -> int:
        """Return the most bytes that were in use on a device since `simdev.reset`."""
        return self.library.memory(self.index(device))[1]

    def memory_reserved(self, device: DeviceLike = None) -> int:
        """Return the bytes in use: there is no cache that could hold more."""
        return self.memory_allocated(device)

    def mem_get_info(self, device: DeviceLike = None) -> tuple[int, int]:
        """Return the free and the total bytes of a device."""
        used, _, capacity, *_ = self.library.memory(self.index(device))
        return capacity - used, capacity

    def get_device_name(self, device: DeviceLike = None) -> str:
        """Return a name for people."""
        return f"simulated {self.backend}"

    def get_device_capability(self, device: DeviceLike = None) -> tuple[int, int]:
        """Return a capability that no library takes for an old device."""
        return (9, 0)

    def get_device_properties(self, device: DeviceLike = None) -> types.SimpleNamespace:
        """Return name, memory and capability in the fields that `torch.cuda` uses."""
        major, minor = self.get_device_capability(device)
        total_memory = self.mem_get_info(device)[1]
        return types.SimpleNamespace(
            name=self.get_device_name(device), total_memory=total_memory, major=major, minor=minor
        )

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        """Say that bfloat16 works, as on the CPU that computes it."""
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return the types that autocast may choose."""
        return [torch.float16, torch.bfloat16]

    def manual_seed(self, seed: int) -> None:
        """Seed the generator of the current device."""
        self.library.seed(self.current_device(), seed)

    def manual_seed_all(self, seed: int) -> None:
        """Seed the generators of all devices; `torch.manual_seed` calls this."""
        for index in range(self.count):
            self.library.seed(index, seed)


def _stream_class(module: DeviceModule) -> type[torch.Stream]:
    class Stream(torch.Stream):
        """A stream of one device, made as `torch.cuda.Stream(device, priority)` is."""

        def __new__(cls, device: DeviceLike = None, priority: int = 0, **handle: int) -> Stream:
            if handle:  # stream_id, device_index and device_type of a stream that exists: torch wraps it again
                return super().__new__(cls, **handle)
            on = torch.device(module.backend, module.index(device))
            return super().__new__(cls, device=on, priority=priority)

    return Stream
