"""Decide where the bytes of a model live: budgets in, a plan out, or an error that says what would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import alloc_spec
from alloc_spec import AllocationSpec, Budget, DeviceMemory, NoSpaceError
from block_discovery import BlockTree
from device_placement._errors import BudgetTooSmallError, InvalidPlanError
from device_placement._hardware import Device, Hardware
from device_placement._numbers import is_count, quoted
from device_placement._plan import PlacementPlan, Policy, aligned_bytes
from device_placement.planning._layout import Layout, Wish, layout
from device_placement.planning._suggestions import raise_advised

GIB = 1 << 30
FIT_STEPS = 12
"""The most that fits is searched to 1/4096 of what is to be decided: some MiB of a large model."""

COARSE_STEPS = 32
"""Amounts that are tried where the least resident does not fit."""


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
    request = _request(tree, resolved, hardware)
    propose = layout(tree, request.wish, policy=policy, slots=slots, unit_seconds=unit_seconds)
    trial = _Trial(request=request, layout=propose, policy=policy, slots=slots, warnings=resolved.warnings)
    chosen = trial.largest_fitting() if request.may_choose else trial.plan(request.resident_bytes)
    _check_compute(chosen, trial, hardware)
    for donor in chosen.donors:
        _check_donor(chosen, donor, hardware)
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What a plan has to respect, in bytes.

    Attributes:
        wish: donors, their amounts and their order.
        rest_bytes: always resident.
        resident_bytes: most that the compute device may hold of the model, the rest included.
        usable_bytes: memory there for the model and the slots.
        may_choose: the compute device is ``auto``: less than `resident_bytes` is as good.
        warnings: about the request itself.
    """

    wish: Wish
    rest_bytes: int
    resident_bytes: int
    usable_bytes: int
    may_choose: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Plans for one request, by resident bytes."""

    request: _Request
    layout: Layout
    policy: Policy
    slots: int
    warnings: tuple[str, ...]

    def plan(self, resident_bytes: int) -> PlacementPlan:
        """The plan that keeps at most `resident_bytes` of the model on the compute device."""
        wish = self.request.wish
        return PlacementPlan(
            compute=wish.compute,
            donors=wish.donors,
            policy=self.policy,
            slots=self.slots,
            units=self.layout(resident_bytes - self.request.rest_bytes),
            warnings=self.warnings + self.request.warnings,
        )

    def largest_fitting(self) -> PlacementPlan:
        """The plan with the most resident bytes that fits; the one that needs least in all where none does."""
        low, high = self.request.rest_bytes, self.request.resident_bytes
        best = self.plan(high)
        if self._fits(best):
            return best
        best = self.plan(low)
        if not self._fits(best):
            low, high, best = self._somewhere_between(low, high)
        tolerance = (high - low) >> FIT_STEPS
        while high - low > max(1, tolerance):
            middle = (low + high) // 2
            proposal = self.plan(middle)
            if self._fits(proposal):
                low, best = middle, proposal
            else:
                high = middle
        return best

    def _somewhere_between(self, low: int, high: int) -> tuple[int, int, PlacementPlan]:
        """The largest of some amounts that fits and the next larger one: to stream more may take larger slots.

        Where none fits, there is nothing left to search: both amounts are that of the plan that needs least.
        """
        amounts = [low + (high - low) * step // COARSE_STEPS for step in range(COARSE_STEPS + 1)]
        proposals = [self.plan(amount) for amount in amounts]
        for index in reversed(range(COARSE_STEPS)):
            if self._fits(proposals[index]):
                return amounts[index], amounts[index + 1], proposals[index]
        return low, low, min(proposals, key=lambda proposal: proposal.compute_peak_bytes)

    def _fits(self, proposal: PlacementPlan) -> bool:
        return proposal.compute_peak_bytes <= self.request.usable_bytes


def _resolved(tree: BlockTree, asked: Budget | AllocationSpec, hardware: Hardware) -> Budget:
    if isinstance(asked, Budget):
        return asked
    memory = {
        device.name: DeviceMemory(total=device.total_bytes, free=device.free_bytes, reserve=device.reserve_bytes)
        for device in hardware.devices
    }
    return alloc_spec.resolve(asked, model_bytes=tree.size_bytes, devices=memory, compute_device=hardware.compute)


def _request(tree: BlockTree, budget: Budget, hardware: Hardware) -> _Request:
    compute = hardware.compute
    if budget.compute_device not in (None, compute):
        raise InvalidPlanError(
            f"the budget computes on {budget.compute_device!r} but the hardware was described for {compute!r}; "
            f"describe or probe it with compute={budget.compute_device!r}"
        )
    if budget.model_bytes != tree.size_bytes:
        raise InvalidPlanError(
            f"the budget divides {budget.model_bytes} bytes but the model has {tree.size_bytes}; "
            f"resolve the allocation with model_bytes={tree.size_bytes}"
        )
    for name in budget.order:
        hardware.device(name)
    if runners := sorted(budget.run_devices - {compute}):
        raise InvalidPlanError(
            f"plans do not run blocks on {' and '.join(runners)} yet; leave out ',run', and what is held there streams "
            f"to {compute}"
        )
    order = budget.order if compute in budget.order else (compute, *budget.order)
    donors = [name for name in order if name != compute]
    amounts = {name: budget.bytes_for(name) for name in donors}
    flexible = [name for name in donors if name in budget.auto_devices or name == budget.rest_device]
    auto = compute in budget.auto_devices
    elastic = _elastic(donors, amounts, hardware, flexible, slack_bytes=_slack(tree, len(donors), auto=auto))
    rest = sum(unit.size_bytes for unit in tree.units if unit.kind == "rest")
    may_choose = auto and elastic is not None
    resident = budget.bytes_for(compute)
    if may_choose:
        resident += sum(amounts[name] for name in flexible)
    warnings: list[str] = []
    if resident < rest:
        _check_rest(hardware.device(compute), rest, resident, tree.size_bytes)
        resident = rest
        warnings.append(
            f"{compute} was given no bytes of the model, but {rest} bytes outside every block stay there: "
            "they are small, or shared by several blocks, and in use all the time"
        )
    warnings += _unverified(hardware, donors)
    return _Request(
        wish=Wish(compute=compute, order=order, amounts=amounts, elastic=elastic),
        rest_bytes=rest,
        resident_bytes=resident,
        usable_bytes=hardware.device(compute).usable_bytes,
        may_choose=may_choose,
        warnings=tuple(warnings),
    )


def _elastic(
    donors: list[str], amounts: Mapping[str, int], hardware: Hardware, flexible: list[str], *, slack_bytes: int
) -> str | None:
    """The donor that takes the rounding: one whose amount is nobody's wish if there is one, then the roomiest.

    A donor that was given nothing, because others are to be filled first, takes none while one in use has room.
    """

    def preference(name: str) -> tuple[bool, bool, int, int]:
        room = hardware.device(name).usable_bytes - amounts[name]
        return name in flexible, amounts[name] > 0 and room >= slack_bytes, room, donors.index(name)

    return max(donors, key=preference, default=None)


def _slack(tree: BlockTree, donor_count: int, *, auto: bool) -> int:
    """The most that one donor may have to take beyond its amount: a unit a donor, and the gaps between tensors.

    Where the compute device may give up more than its amount (`auto`), that is the whole model.
    """
    units = [unit for unit in tree.units if unit.kind != "rest"]
    gaps = sum(aligned_bytes(tensor.size_bytes) - tensor.size_bytes for unit in units for tensor in unit.tensors)
    largest = max((unit.size_bytes for unit in units), default=0)
    return (tree.size_bytes if auto else donor_count * largest) + gaps


def _unverified(hardware: Hardware, donors: list[str]) -> list[str]:
    """A warning for each donor whose bytes have to take a detour."""
    return [
        f"bytes copied from {link.source} to {link.target} arrived changed when checked; they go through the host"
        for link in hardware.links
        if link.target == hardware.compute and link.source in donors and not link.verified
    ]


def _check_rest(compute: Device, rest_bytes: int, resident_bytes: int, model_bytes: int) -> None:
    """Refuse an amount that the rest does not fit into, unless it is 0 and there is something else to move."""
    if resident_bytes == 0 and rest_bytes < model_bytes:
        return
    if rest_bytes <= compute.usable_bytes:
        remedy = f"give {compute.name} at least {rest_bytes} bytes ({_gib(rest_bytes, up=True)}) of the model"
    else:
        remedy = f"free memory on {compute.name} or lower its reserve: {compute.usable_bytes} bytes are usable there"
    raise BudgetTooSmallError(
        device=compute.name,
        what="the parts of the model that are always resident (outside every block)",
        needed_bytes=rest_bytes,
        available_bytes=resident_bytes,
        remedy=remedy,
    )


def _check_compute(chosen: PlacementPlan, trial: _Trial, hardware: Hardware) -> None:
    """Refuse a plan whose residents and slots do not fit, and say which would."""
    usable = trial.request.usable_bytes
    if chosen.compute_peak_bytes <= usable:
        return
    compute = chosen.compute
    fitting = chosen if trial.request.may_choose else trial.largest_fitting()
    if fitting.compute_peak_bytes <= usable:
        most = fitting.bytes_on(compute)
        remedy = (
            f"keep at most {most} bytes ({_gib(most)}) of the model there, "
            f"so that {chosen.size_bytes - most} bytes ({_gib(chosen.size_bytes - most, up=True)}) are on donors"
        )
    else:
        remedy = (
            f"no amount fits there; the one that takes least needs {fitting.compute_peak_bytes} bytes, slots included: "
            f"free memory on {compute}, lower its reserve or use fewer slots"
        )
    slots = f" and {chosen.slots} slots of {chosen.slot_bytes} bytes" if chosen.slot_bytes else ""
    raise BudgetTooSmallError(
        device=compute,
        what=f"{chosen.bytes_on(compute)} resident bytes of the model{slots}",
        needed_bytes=chosen.compute_peak_bytes,
        available_bytes=usable,
        remedy=remedy,
    )


def _check_donor(chosen: PlacementPlan, donor: str, hardware: Hardware) -> None:
    """Refuse a plan that puts more on a donor than is free there."""
    usable = hardware.device(donor).usable_bytes
    needed = sum(aligned_bytes(home.size_bytes) for unit in chosen.units for home in unit.homes if home.device == donor)
    if needed > usable:
        raise BudgetTooSmallError(
            device=donor,
            what="the streamed tensors that live there",
            needed_bytes=needed,
            available_bytes=usable,
            remedy=f"give {donor} at most {usable} bytes ({_gib(usable)}) and the rest to another donor",
        )


def _gib(size_bytes: int, *, up: bool = False) -> str:
    """Bytes in the GB of the allocation language, rounded to the safe side."""
    hundredths = -(-size_bytes * 100 // GIB) if up else size_bytes * 100 // GIB
    return f"{hundredths / 100:.2f} gb"
