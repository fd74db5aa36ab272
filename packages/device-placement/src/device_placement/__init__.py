"""Plan where each byte of a model lives, predict the cost, and run it streamed."""

from device_placement._diagnose import Finding, diagnose
from device_placement._errors import (
    BudgetTooSmallError,
    DeviceUnavailableError,
    InvalidHardwareError,
    InvalidJsonError,
    InvalidPlanError,
    PlacementError,
    UnknownDeviceError,
    UnknownLinkError,
)
from device_placement._estimate import Bound, Estimate, Span
from device_placement._hardware import Device, Hardware, Link
from device_placement._plan import PlacementPlan, Policy, TensorHome, UnitPlacement
from device_placement._planner import plan
from device_placement._predict import predict
from device_placement._probe import probe
from device_placement._svg_plan import render_svg
from device_placement._svg_timeline import render_timeline_svg
from device_placement._tables import render_table

__all__ = [
    "Bound",
    "BudgetTooSmallError",
    "Device",
    "DeviceUnavailableError",
    "Estimate",
    "Finding",
    "Hardware",
    "InvalidHardwareError",
    "InvalidJsonError",
    "InvalidPlanError",
    "Link",
    "PlacementError",
    "PlacementPlan",
    "Policy",
    "Span",
    "TensorHome",
    "UnitPlacement",
    "UnknownDeviceError",
    "UnknownLinkError",
    "diagnose",
    "plan",
    "predict",
    "probe",
    "render_svg",
    "render_table",
    "render_timeline_svg",
]
