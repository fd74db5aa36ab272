"""The one file here that may say `torch.cuda`: what `torch.accelerator` does not offer on every torch >= 2.6."""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import torch

from alloc_spec import human_size
from device_placement._errors import DeviceUnavailableError
from device_placement.machine._allocation import AllocationRefused, allocate_or_refuse

_PAGE_BYTES = 4096
_REGISTER_PORTABLE = 1
"""cudaHostRegisterPortable: page-locked for every device of the process."""


def unavailable_reason() -> str | None:
    """What torch itself says when asked to start CUDA, in one line; None when it starts."""
    try:
        torch.cuda.current_device()
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return None


def can_access_peer(reader: torch.device, owner: torch.device) -> bool:
    """Whether the driver lets `reader` read the memory of `owner` directly.

    The driver's word is not enough: machines with an IOMMU or ACS answer yes and deliver wrong bytes, hence the
    checksum in `probe`.
    """
    return bool(torch.cuda.can_device_access_peer(reader, owner))


def clear_error(device: torch.device) -> None:
    """Take away the error that a refused call leaves behind in the CUDA runtime.

    A refused pin (normal under WSL) is reported twice: by the call, and again by the next kernel launch, which then
    looks guilty of it. Launching something harmless here makes this the launch that pays.

    Raises:
        DeviceUnavailableError: the device still answers with an error, so it was not the refused call's.
    """
    try:
        _launch(device)
    except RuntimeError:
        try:
            _launch(device)
        except RuntimeError as error:
            raise DeviceUnavailableError(
                str(device), str(error).splitlines()[0], "the process must be restarted to use this device again"
            ) from error


def _launch(device: torch.device) -> None:
    """Run the smallest kernel there is and wait for it."""
    torch.zeros(1, device=device).add_(1)
    torch.cuda.synchronize(device)


def registered_buffer(size_bytes: int) -> torch.Tensor:
    """Page-locked host memory of exactly this size, as a flat uint8 tensor.

    Ordinary memory is registered with the driver, since torch's own pinned allocator rounds up to a power of two:
    half as much again on average, and for a whole model that is many gigabytes. It is unregistered when the returned
    object goes; views of it may live on as ordinary memory.

    Raises:
        AllocationRefused: there is no memory, or the driver does not lock it.
    """
    raw = allocate_or_refuse(size_bytes + 2 * _PAGE_BYTES, torch.device("cpu"))
    # Two buffers must not share a page: the driver refuses to lock one twice.
    start = raw.data_ptr() + -raw.data_ptr() % _PAGE_BYTES
    locked_bytes = -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES
    answer = _runtime().cudaHostRegister(start, locked_bytes, _REGISTER_PORTABLE)
    if int(answer) != 0:
        raise AllocationRefused(f"cudaHostRegister of {human_size(locked_bytes)} answered {answer}")
    buffer = _tensor_at(start, size_bytes, owner=raw)
    # The finalizer holds the memory until the driver has let go of it, whatever else is dropped before.
    weakref.finalize(buffer, _unregister, raw, start).atexit = False
    return buffer


def _tensor_at(start: int, size_bytes: int, *, owner: torch.Tensor) -> torch.Tensor:
    """The bytes of `owner` from this address on, as a tensor whose storage begins there.

    A slice would not do: torch asks the driver about the first byte of a storage to tell whether a tensor is pinned.
    """
    memory = (ctypes.c_uint8 * size_bytes).from_address(start)
    memory.owner = owner  # type: ignore[attr-defined]
    # A view, so that views of it are views of what it views, and do not keep the object itself.
    return torch.frombuffer(memory, dtype=torch.uint8)[:]


def _runtime() -> Any:
    """The CUDA runtime as torch binds it."""
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


def _unregister(memory: torch.Tensor, pointer: int) -> None:
    """Let the driver unlock `memory`, once no copy reads it."""
    torch.cuda.synchronize()
    _runtime().cudaHostUnregister(pointer)
