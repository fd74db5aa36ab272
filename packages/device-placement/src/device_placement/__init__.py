"""Plan where each byte of a model lives, predict the cost, and run it streamed."""

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

__all__ = [
    "Bound",
    "BudgetTooSmallError",
    "Device",
    "DeviceUnavailableError",
    "Estimate",
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
    "plan",
    "predict",
]
