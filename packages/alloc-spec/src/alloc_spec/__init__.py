"""The allocation language: what a user asked for, as integer byte budgets.

>>> import alloc_spec
>>> spec = alloc_spec.parse("cuda:0,2.5gb;cpu,*")
>>> gib = 2**30
>>> machine = {
...     "cuda:0": alloc_spec.DeviceMemory(total=24 * gib, free=23 * gib, reserve=gib),
...     "cpu": alloc_spec.DeviceMemory(total=64 * gib, free=60 * gib),
... }
>>> budget = alloc_spec.resolve(spec, model_bytes=10 * gib, devices=machine)
>>> budget.bytes_for("cuda:0"), budget.bytes_for("cpu"), budget.order
(2684354560, 8053063680, ('cuda:0', 'cpu'))
"""

from alloc_spec._amounts import Amount, Auto, Bytes, DeviceFraction, Donated, Free, Percent, Rest
from alloc_spec._budget import Budget
from alloc_spec._controls import from_controls
from alloc_spec._errors import AllocRuleError, AllocSpecError, AllocSyntaxError, AllocValueError
from alloc_spec._explain import explain
from alloc_spec._human import human_seconds, human_size
from alloc_spec._memory import DeviceMemory
from alloc_spec._model import AllocationSpec, Dialect, Entry
from alloc_spec._parse import parse, parse_wire
from alloc_spec._resolve import resolve
from alloc_spec._resolve_errors import (
    AllocResolveError,
    ComputeDeviceError,
    ExceedsModelError,
    NoHomeError,
    NoRoomError,
    NoSpaceError,
    UnknownDeviceError,
)

__all__ = [
    "AllocResolveError",
    "AllocRuleError",
    "AllocSpecError",
    "AllocSyntaxError",
    "AllocValueError",
    "AllocationSpec",
    "Amount",
    "Auto",
    "Budget",
    "Bytes",
    "ComputeDeviceError",
    "DeviceFraction",
    "DeviceMemory",
    "Dialect",
    "Donated",
    "Entry",
    "ExceedsModelError",
    "Free",
    "NoHomeError",
    "NoRoomError",
    "NoSpaceError",
    "Percent",
    "Rest",
    "UnknownDeviceError",
    "explain",
    "from_controls",
    "human_seconds",
    "human_size",
    "parse",
    "parse_wire",
    "resolve",
]
