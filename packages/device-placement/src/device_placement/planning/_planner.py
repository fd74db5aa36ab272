"""Decide where the bytes of a model live: an allocation in, a plan out, or an error that says what would fit."""

from __future__ import annotations

from collections.abc import Mapping

import alloc_spec
from alloc_spec import AllocationSpec, Budget, DeviceMemory, NoSpaceError
from block_discovery import BlockTree
from device_placement._errors import BudgetTooSmallError, InvalidPlanError
from device_placement._hardware import Hardware
from device_placement._numbers import is_count, quoted
from device_placement._plan import PlacementPlan, Policy
from device_placement.planning._fitting import Fitting
from device_placement.planning._layout import layout
from device_placement.planning._request import request_for
from device_placement.planning._size_checks import check_compute, check_donor
from device_placement.planning._suggestions import raise_advised


def plan(
    tree: BlockTree,
    budget: Budget | AllocationSpec | str,
    hardware: Hardware,
    *,
    policy: Policy = "stripe",
    slots: int = 2,
    unit_seconds: Mapping[str, float] | None = None,
) -> PlacementPlan:
    """Plan the placement of a model.

    The compute device never holds more of the model than its amount. The donors get what it gives up: at least what
    was asked, at most one block more, in the order of the allocation along the model, whole tensors only. The rest
    of the model (tied tensors, small layers) is always resident. A lookup table is streamed like any unit, but last
    of all.

    The amount of the compute device is for the model alone: the streaming slots come on top, out of what is free
    there less the reserve, and an amount that leaves them no room is an error. Where the amount of the compute
    device is ``auto``, the plan keeps as much resident as fits beside the slots. An amount of 0 (``"cpu,*"``) means
    as little as possible: the rest stays nevertheless, and a warning says so.

    Args:
        tree: units of the model.
        budget: an allocation as text, as a specification or resolved; text and specification are resolved with the
            memory in `hardware`, and tell the planner which amounts it may change where the compute device is
            ``auto``.
        hardware: the compute device and the donors.
        policy: ``"stripe"``: every block keeps some tensors and streams a share proportional to its compute;
            ``"interleave"``: whole blocks, evenly spaced; ``"contiguous"``: one stretch of the model a device, in the
            order of the allocation; ``"legacy_tail"``: whole blocks, devices in alphabetical order, for comparison.
        slots: streaming buffers on the compute device; 2 overlap copy and compute.
        unit_seconds: time of one forward of each unit by path, if measured; else every block is taken to need
            the same, and single layers beside blocks little.

    Raises:
        BudgetTooSmallError: the rest and the slots do not fit, or a donor is too small; says how many bytes are
            missing and what would fit.
        InvalidPlanError: the budget is for another model or compute device, or an argument is out of range.
        UnknownDeviceError: the budget names a device that `hardware` does not have.
        alloc_spec.AllocSpecError: the text is no allocation, or cannot be resolved on this hardware; an allocation
            that it suggests can be planned.
    """
    if not is_count(slots, least=1):
        raise InvalidPlanError(
            f"{quoted(slots)} slots cannot receive anything; use 1 or more (2 overlap copy and compute)"
        )

    def attempt(allocation: Budget | AllocationSpec) -> PlacementPlan:
        resolved = _resolved(tree, allocation, hardware)
        return _planned(tree, resolved, hardware, policy=policy, slots=slots, unit_seconds=unit_seconds)

    asked = alloc_spec.parse(budget) if isinstance(budget, str) else budget
    try:
        return attempt(asked)
    except (NoSpaceError, BudgetTooSmallError) as error:
        raise_advised(error, asked, hardware, attempt)


def _planned(
    tree: BlockTree,
    resolved: Budget,
    hardware: Hardware,
    *,
    policy: Policy,
    slots: int,
    unit_seconds: Mapping[str, float] | None,
) -> PlacementPlan:
    """The plan of a budget, checked against the memory there is."""
    request = request_for(tree, resolved, hardware)
    propose = layout(tree, request.wish, policy=policy, slots=slots, unit_seconds=unit_seconds)
    fitting = Fitting(request=request, layout=propose, policy=policy, slots=slots, warnings=resolved.warnings)
    chosen = fitting.largest_fitting() if request.may_choose else fitting.plan(request.resident_bytes)
    check_compute(chosen, fitting, hardware)
    for donor in chosen.donors:
        check_donor(chosen, donor, hardware)
    return chosen


def _resolved(tree: BlockTree, asked: Budget | AllocationSpec, hardware: Hardware) -> Budget:
    if isinstance(asked, Budget):
        return asked
    memory = {
        device.name: DeviceMemory(total=device.total_bytes, free=device.free_bytes, reserve=device.reserve_bytes)
        for device in hardware.devices
    }
    return alloc_spec.resolve(asked, model_bytes=tree.size_bytes, devices=memory, compute_device=hardware.compute)
