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
from device_placement._planner import plan
from device_placement._predict import predict
from device_placement._stats import PlacementStats
from device_placement._svg_plan import render_svg
from device_placement._svg_timeline import render_timeline_svg
from device_placement._tables import render_table

if TYPE_CHECKING:
    from device_placement._backend import Backend
    from device_placement._backend_accelerator import AcceleratorBackend
    from device_placement._backend_emulated import EmulatedBackend
    from device_placement._backend_same import SameDeviceBackend
    from device_placement._diagnose import Finding, diagnose
    from device_placement._place import place
    from device_placement._placed import PlacedModel
    from device_placement._probe import probe
else:
    _NEED_TORCH = {
        "AcceleratorBackend": "_backend_accelerator",
        "Backend": "_backend",
        "EmulatedBackend": "_backend_emulated",
        "Finding": "_diagnose",
        "PlacedModel": "_placed",
        "SameDeviceBackend": "_backend_same",
        "diagnose": "_diagnose",
        "place": "_place",
        "probe": "_probe",
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
