"""The functions people call: install the devices, set what they do, read what happened on them."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.backend_registration import generate_methods_for_privateuse1_backend, rename_privateuse1_backend

from simdev._build import build
from simdev._errors import InstallError
from simdev._library import HOST, Library
from simdev._module import DeviceModule

MAX_DEVICES = 16
_UNLIMITED = 2**64 - 1
RaceMode = Literal["off", "record", "raise"]
_RACE_MODES: tuple[RaceMode, ...] = ("off", "record", "raise")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The memory of one device, in bytes, and what was asked of it.

    Attributes:
        used: bytes in use, each allocation rounded up to 512.
        peak: the most that was in use since `reset`.
        capacity: bytes the device holds.
        allocs: allocations since the start.
        frees: of these, how many were freed.
        ooms: allocations refused since `reset`.
    """

    used: int
    peak: int
    capacity: int
    allocs: int
    frees: int
    ooms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What crossed from one device to another in one kind of copy since `reset`.

    Attributes:
        src: device the bytes came from, such as "sim:1", or "host".
        dst: device they went to, or "host".
        kind: "sync" (the host waited), "async" (pinned host memory, non_blocking), "async-pageable" (non_blocking
            was asked for, but the host memory is not pinned) or "d2d" (between devices).
        count: number of copies.
        bytes: bytes that crossed, in the type they cross in.
    """

    src: str
    dst: str
    kind: str
    count: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Counts over all devices.

    Attributes:
        host_syncs: how often the host waited for a device since `reset`: synchronize, blocking copies, `item()`.
        kernels: operators that ran since `reset`.
        queued: copies that were issued and not carried out yet, into memory that is still in use.
    """

    host_syncs: int
    kernels: int
    queued: int


def install(
    name: str = "sim",
    count: int = 4,
    capacity: int | Sequence[int] | None = None,
    *,
    pretend_torch_npu: bool = False,
) -> DeviceModule:
    """Make simulated devices `name:0` ... in this process, before any device is used; compiles on first use.

    torch allows one backend name a process, and no way back: a second call must ask for the same.

    Args:
        name: of the backend. "npu" lets code that has a path for Ascend devices run unchanged.
        count: number of devices, 1 to 16.
        capacity: bytes a device, one number for all or one for each; None leaves 8 GiB.
        pretend_torch_npu: also offer an empty module `torch_npu`, for code that imports it before it uses "npu".

    Returns:
        the device module, also at `torch.<name>`.

    Raises:
        ValueError: `count` or the length of `capacity` is out of range.
        InstallError: devices with another name or count are installed, or this process can use a real accelerator,
            which the simulated one would displace as `torch.accelerator`.
        BuildError: the library does not compile.
    """
    if not 1 <= count <= MAX_DEVICES:
        raise ValueError(f"count is {count}; simdev offers 1 to {MAX_DEVICES} devices")
    capacities = [capacity] * count if capacity is None or isinstance(capacity, int) else list(capacity)
    if len(capacities) != count:
        raise ValueError(f"capacity lists {len(capacities)} devices and count is {count}; give one number for each")
    module = _installed() or _install(name, count)
    if (module.backend, module.count) != (name, count):
        raise InstallError(
            f"{count} devices named {name!r}",
            f"this process already has {module.count} named {module.backend!r}, and torch has no way back",
            "ask for the same devices everywhere in a process, or start another process",
        )
    for index, size_bytes in enumerate(capacities):
        if size_bytes is not None:
            module.library.set_capacity(index, size_bytes)
    if pretend_torch_npu:
        sys.modules.setdefault("torch_npu", types.ModuleType("torch_npu"))
    return module


def _install(name: str, count: int) -> DeviceModule:
    if torch.cuda.is_available() or torch.xpu.is_available():
        raise InstallError(
            "simulated devices",
            "this process sees a real accelerator, and torch.accelerator would no longer name it",
            "hide it from the process that simulates: CUDA_VISIBLE_DEVICES= (empty), ZE_AFFINITY_MASK= for XPU",
        )
    library = Library(build())
    library.start(count)
    rename_privateuse1_backend(name)
    module = DeviceModule(name, library, count)
    torch._register_device_module(name, module)
    generate_methods_for_privateuse1_backend(for_storage=True)
    return module


def _installed() -> DeviceModule | None:
    # torch itself is the one holder of the state: the renamed backend and its module live as long as the process.
    module = getattr(torch, torch._C._get_privateuse1_backend_name(), None)
    return module if isinstance(module, DeviceModule) else None


def _module() -> DeviceModule:
    module = _installed()
    if module is None:
        raise InstallError("simulated devices", "none are installed in this process", "call simdev.install() first")
    return module


def config(
    *,
    lazy: bool | None = None,
    race: RaceMode | None = None,
    poison: bool | None = None,
    dry: bool | None = None,
    thread_clocks: bool | None = None,
) -> None:
    """Change how the devices behave; None leaves a setting unchanged.

    Args:
        lazy: carry out asynchronous copies as late as streams and events allow (at the start: yes).
        race: what to do about accesses that nothing orders: "off", "record" for `violations`, or also "raise" a
            RuntimeError that begins with "simdev race" at the operator (at the start: "raise").
        poison: fill fresh device memory with bytes that read as NaN in every floating type (at the start: yes).
        dry: compute nothing: shapes, bytes, links and order only, in address space that is never touched (at the
            start: no). What a device holds is meaningless afterwards; operators whose result depends on values take
            whatever bytes are there.
        thread_clocks: let each host thread know only what it waited for itself, besides what all knew at this call
            and when it first used a device (at the start: no, one clock for all threads). Then a race is found whether
            or not another thread happened to wait in time, and a wait that one thread hands to another by a lock or a
            queue alone counts as none.

    Raises:
        ValueError: `race` is not one of the three.
    """
    if race is not None and race not in _RACE_MODES:
        raise ValueError(f"race is {race!r}; the modes are {', '.join(_RACE_MODES)}")
    mode = None if race is None else _RACE_MODES.index(race)
    _module().library.configure(lazy, mode, poison, dry, thread_clocks)


def set_visible(visible: bool) -> None:
    """Let `torch.accelerator` find the devices (at the start: yes), or find none, as before they were installed.

    The devices work either way. It lets tests that expect no accelerator share a process with those that expect one;
    what asks with `current_accelerator(check_available=True)`, `is_available` or `device_count` sees the difference.
    """
    _module().visible = visible


def set_capacity(device: int, size_bytes: int) -> None:
    """Set how many bytes device number `device` holds; less than is in use refuses whatever comes next.

    Raises:
        ValueError: there is no such device, or `size_bytes` is negative.
    """
    if size_bytes < 0:
        raise ValueError(f"size_bytes is {size_bytes}; a capacity is 0 or more")
    _module().library.set_capacity(_checked(device), size_bytes)


def mem(device: int) -> Memory:
    """Return the memory of device number `device`.

    Raises:
        ValueError: there is no such device.
    """
    used, peak, capacity, allocs, frees, ooms = _module().library.memory(_checked(device))
    return Memory(used=used, peak=peak, capacity=capacity, allocs=allocs, frees=frees, ooms=ooms)


def _checked(device: int) -> int:
    count = _module().count
    if not 0 <= device < count:
        raise ValueError(f"there is no simulated device {device}; they are numbered 0 to {count - 1}")
    return device


def links() -> tuple[Link, ...]:
    """Return what crossed between devices since `reset`, ordered by source, destination and kind."""
    module = _module()

    def name(index: int) -> str:
        return "host" if index < 0 else f"{module.backend}:{index}"

    rows = module.library.links()
    return tuple(
        Link(src=name(src), dst=name(dst), kind=kind, count=count, bytes=size_bytes)
        for src, dst, kind, count, size_bytes in rows
    )


def violations() -> tuple[str, ...]:
    """Return the broken orders written down since the last `reset` or `take_violations`, one sentence each."""
    return _module().library.violations(take=False)


def take_violations() -> tuple[str, ...]:
    """Return the broken orders and forget them: how a test says that it expected them."""
    return _module().library.violations(take=True)


def ops() -> dict[str, int]:
    """Return how often each operator ran since `reset` while `count_ops` was on."""
    return _module().library.ops()


def count_ops(on: bool = True) -> None:
    """Count operators by name from now on, or stop."""
    _module().library.count_ops(on)


def counters() -> Counters:
    """Return host synchronisations, kernels, and copies that still wait in a queue."""
    host_syncs, kernels, queued = _module().library.counters()
    return Counters(host_syncs=host_syncs, kernels=kernels, queued=queued)


def corrupt_link(src: int, dst: int, on: bool = True) -> None:
    """Let copies from device `src` to device `dst` deliver wrong bytes, until `reset`.

    Some machines do this between GPUs (an IOMMU or PCIe access control in the way), and report success.

    Raises:
        ValueError: there is no such device.
    """
    _module().library.corrupt_link(_checked(src), _checked(dst), on)


def set_pinned_capacity(size_bytes: int | None) -> None:
    """Set how many bytes of host memory can be pinned; None: as many as there are.

    More is refused with a RuntimeError, as a driver does that may not lock so much (WSL, containers).

    Raises:
        ValueError: `size_bytes` is negative.
    """
    if size_bytes is not None and size_bytes < 0:
        raise ValueError(f"size_bytes is {size_bytes}; a capacity is 0 or more")
    _module().library.set_capacity(HOST, _UNLIMITED if size_bytes is None else size_bytes)


def pinned_bytes(peak: bool = False) -> int:
    """Return the bytes of pinned host memory in use, or the most that were since `reset`."""
    used, most, *_ = _module().library.memory(HOST)
    return most if peak else used


def reset() -> None:
    """Forget links, violations, operator counts, counters and refusals; links are sound again.

    Peaks start again from what is in use. Capacities, settings and the history of each block stay.
    """
    _module().library.reset()
