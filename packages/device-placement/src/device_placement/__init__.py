"""Plan where each byte of a model lives, predict the cost, and run it streamed."""

from device_placement._backend import Backend
from device_placement._backend_accelerator import AcceleratorBackend
from device_placement._backend_emulated import EmulatedBackend
from device_placement._backend_same import SameDeviceBackend
from device_placement._diagnose import Finding, diagnose
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
from device_placement._place import place
from device_placement._placed import PlacedModel
from device_placement._plan import PlacementPlan, Policy, TensorHome, UnitPlacement
from device_placement._planner import plan
from device_placement._predict import predict
from device_placement._probe import probe
from device_placement._stats import PlacementStats
from device_placement._svg_plan import render_svg
from device_placement._svg_timeline import render_timeline_svg
from device_placement._tables import render_table

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
