"""Plan where each byte of a model lives, predict the cost, and run it streamed."""

from device_placement._hardware import Device, Hardware, Link
from device_placement._plan import PlacementPlan, Policy, TensorHome, UnitPlacement

__all__ = ["Device", "Hardware", "Link", "PlacementPlan", "Policy", "TensorHome", "UnitPlacement"]
