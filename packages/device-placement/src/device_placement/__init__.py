"""Plan where each byte of a model lives, predict the cost, and run it streamed."""

from importlib import import_module
from typing import TYPE_CHECKING

from device_placement._errors import (
    BudgetTooSmallError,
    DevicesFullError,
    DeviceUnavailableError,
    HandleInvalidatedError,
    HandleStateError,
    InvalidHardwareError,
    InvalidJsonError,
    InvalidPlanError,
    PeerCopyError,
    PlacementError,
    PlanMismatchError,
    StreamedWriteError,
    UnknownDeviceError,
    UnknownLinkError,
)
from device_placement._estimate import Bound, Estimate, Span
from device_placement._hardware import Device, Hardware, Link
from device_placement._plan import PlacementPlan, Policy, TensorHome, UnitPlacement
from device_placement._stats import PlacementStats
from device_placement.planning._planner import plan
from device_placement.planning._predict import predict
from device_placement.report._svg_plan import render_svg
from device_placement.report._svg_timeline import render_timeline_svg
from device_placement.report._tables import render_table

if TYPE_CHECKING:
    from device_placement.copying._accelerator import AcceleratorBackend
    from device_placement.copying._backend import Backend
    from device_placement.copying._emulated import EmulatedBackend
    from device_placement.copying._same_device import SameDeviceBackend
    from device_placement.engine._handle import PlacedModel
    from device_placement.engine._place import place
    from device_placement.machine._diagnose import Finding, diagnose
    from device_placement.machine._probe import probe
else:
    _NEED_TORCH = {
        "AcceleratorBackend": "copying._accelerator",
        "Backend": "copying._backend",
        "EmulatedBackend": "copying._emulated",
        "Finding": "machine._diagnose",
        "PlacedModel": "engine._handle",
        "SameDeviceBackend": "copying._same_device",
        "diagnose": "machine._diagnose",
        "place": "engine._place",
        "probe": "machine._probe",
    }

    def __getattr__(name: str) -> object:
        """Import what works on modules, and with it torch, when it is first asked for; plans do without."""
        if name not in _NEED_TORCH:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_NEED_TORCH[name]}"), name)
        return value


__all__ = [
    "AcceleratorBackend",
    "Backend",
    "Bound",
    "BudgetTooSmallError",
    "Device",
    "DeviceUnavailableError",
    "DevicesFullError",
    "EmulatedBackend",
    "Estimate",
    "Finding",
    "HandleInvalidatedError",
    "HandleStateError",
    "Hardware",
    "InvalidHardwareError",
    "InvalidJsonError",
    "InvalidPlanError",
    "Link",
    "PeerCopyError",
    "PlacedModel",
    "PlacementError",
    "PlacementPlan",
    "PlacementStats",
    "PlanMismatchError",
    "Policy",
    "SameDeviceBackend",
    "Span",
    "StreamedWriteError",
    "TensorHome",
    "UnitPlacement",
    "UnknownDeviceError",
    "UnknownLinkError",
    "diagnose",
    "place",
    "plan",
    "predict",
    "probe",
    "render_svg",
    "render_table",
    "render_timeline_svg",
]
