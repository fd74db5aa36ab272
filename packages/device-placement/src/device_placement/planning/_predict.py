"""Predict what a placement costs, from the plan, the links and (where known) the compute time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from device_placement._errors import InvalidPlanError
from device_placement._estimate import Bound, Estimate, Span
from device_placement._hardware import Hardware
from device_placement._plan import PlacementPlan, UnitPlacement, aligned_bytes, check_seconds
from device_placement.planning._recurrence import Call, Copy, SteadyPass, steady_pass
from device_placement.planning._selection import assumed_weight

BOUND_TOLERANCE = 0.01


def predict(
    plan: PlacementPlan,
    hardware: Hardware,
    *,
    compute_seconds: float | None = None,
    unit_seconds: Mapping[str, float] | None = None,
    call_order: Sequence[str] | None = None,
    overlap: bool = True,
) -> Estimate:
    """Predict one steady forward pass of a placed model.

    A unit starts when its streamed bytes have arrived and its predecessor is done; a copy starts when its link and a
    slot are free; copies on links that share an ingress take turns, and go on across the end of a pass. What is still
    in its slot when it is called again is not copied: with no more streamed units than slots, nothing is.

    Args:
        plan: placement of every unit; pure data, needs no device.
        hardware: links in GB/s and seconds of latency, as measured by `probe` or given by hand.
        compute_seconds: time of a pass with all weights resident. Divided over the calls by `unit_seconds` if given,
            else as the planner assumes: the same for every block, little for single layers, none for lookup tables.
        unit_seconds: time of one forward of each unit by path, weights resident; the rest (path ``""``) may be left
            out. Without `compute_seconds` these are the seconds themselves.
        call_order: paths of the units in the order of their forwards, once for each; the order of the model by
            default.
        overlap: False predicts a system that fetches each unit's bytes when its turn has come: ``C + D``.

    Returns:
        Seconds a pass, slowdown, the binding resource, peak bytes a device, and the timeline of one pass. With
        neither `compute_seconds` nor `unit_seconds`, `Estimate.seconds` is None and only transfers and bytes are
        reported.

    Raises:
        UnknownLinkError: a unit streams over a pair of devices that `hardware` does not describe.
        UnknownDeviceError: the plan names a device that `hardware` does not have.
        InvalidPlanError: the plan is for another compute device, a time is negative or not finite, or a path is not a
            unit of the plan.
    """
    if plan.compute != hardware.compute:
        raise InvalidPlanError(
            f"the plan computes on {plan.compute!r} but the hardware was described for {hardware.compute!r}; "
            f"describe or probe it with compute={plan.compute!r}"
        )
    for donor in plan.donors:
        hardware.device(donor)
    order = _order(plan, call_order)
    by_path = {unit.path: _copies(unit, hardware) for unit in plan.units}
    needed = [by_path[unit.path] for unit in order]
    copies = _without_kept(order, needed, plan.slots) if overlap else needed
    busy = _busy_seconds([copy for call in copies for copy in call])
    transfer = max(busy.values(), default=0.0)
    peak = {device: _donor_bytes(plan, device) for device in plan.donors} | {plan.compute: plan.compute_peak_bytes}
    seconds = _call_seconds(order, compute_seconds, unit_seconds)
    if seconds is None:
        return Estimate(
            compute=plan.compute,
            seconds=None,
            compute_seconds=None,
            transfer_seconds=transfer,
            bound=None,
            peak_bytes=peak,
        )
    calls = [
        Call(unit=unit.path, seconds=own, copies=call) for unit, own, call in zip(order, seconds, copies, strict=True)
    ]
    steady = steady_pass(calls, slots=plan.slots, overlap=overlap)
    compute = math.fsum(seconds)
    # Differences of clock readings carry rounding; no pass is shorter than either bound.
    pass_seconds = max(steady.seconds, compute, transfer)
    return Estimate(
        compute=plan.compute,
        seconds=pass_seconds,
        compute_seconds=compute,
        transfer_seconds=transfer,
        bound=_bound(pass_seconds, compute, transfer),
        peak_bytes=peak,
        spans=_spans(steady, plan.compute),
    )


def _order(plan: PlacementPlan, call_order: Sequence[str] | None) -> list[UnitPlacement]:
    """Units of one pass in the order of their calls."""
    if call_order is None:
        return list(plan.units)
    by_path = {unit.path: unit for unit in plan.units}
    for path in call_order:
        if path not in by_path:
            raise InvalidPlanError(
                f"call_order names {path!r}, which is not a unit of the plan; trace the model planned"
            )
    return [by_path[path] for path in call_order]


def _copies(unit: UnitPlacement, hardware: Hardware) -> tuple[Copy, ...]:
    """One copy a donor: the streamed tensors of a unit lie in one buffer there, every tensor aligned."""
    copies = []
    for donor, homes in unit.streamed(hardware.compute).items():
        link = hardware.link(donor, hardware.compute)
        size_bytes = sum(aligned_bytes(home.size_bytes) for home in homes)
        copies.append(Copy(donor=donor, ingress=link.ingress, seconds=link.copy_seconds(size_bytes)))
    return tuple(copies)


def _without_kept(
    order: Sequence[UnitPlacement], copies: Sequence[tuple[Copy, ...]], slots: int
) -> list[tuple[Copy, ...]]:
    """The copies of each call, none where its unit is in a slot since the last time.

    Slots hold the units that are called next, so that one stays if fewer than `slots` others come in between.
    """
    streamed = [(index, unit.path) for index, unit in enumerate(order) if copies[index]]
    result = list(copies)
    for position, (index, path) in enumerate(streamed):
        between: set[str] = set()
        for back in range(1, len(streamed) + 1):
            other = streamed[position - back][1]
            if other == path:
                result[index] = ()
                break
            between.add(other)
            if len(between) == slots:
                break
    return result


def _busy_seconds(copies: Sequence[Copy]) -> dict[str, float]:
    """Seconds of one pass during which each ingress is busy."""
    busy: dict[str, float] = {}
    for copy in copies:
        busy[copy.ingress] = busy.get(copy.ingress, 0.0) + copy.seconds
    return busy


def _donor_bytes(plan: PlacementPlan, donor: str) -> int:
    """Bytes of the donor's buffers, every tensor aligned."""
    return sum(aligned_bytes(home.size_bytes) for unit in plan.units for home in unit.homes if home.device == donor)


def _call_seconds(
    order: Sequence[UnitPlacement], compute_seconds: float | None, unit_seconds: Mapping[str, float] | None
) -> list[float] | None:
    """Compute time of each call, or None when nothing is known about it."""
    if compute_seconds is None and unit_seconds is None:
        return None
    if compute_seconds is not None:
        check_seconds("compute_seconds", compute_seconds)
    if unit_seconds is None:
        shares = [assumed_weight(unit.kind, is_embedding=unit.is_embedding) for unit in order]
    else:
        shares = [_given_seconds(unit, unit_seconds) for unit in order]
    if compute_seconds is None:
        return shares
    total = math.fsum(shares)
    if not total:
        return [compute_seconds / len(order) for _ in order]
    return [compute_seconds * share / total for share in shares]


def _given_seconds(unit: UnitPlacement, unit_seconds: Mapping[str, float]) -> float:
    seconds = unit_seconds.get(unit.path, 0.0 if unit.kind == "rest" else None)
    if seconds is None:
        raise InvalidPlanError(f"unit_seconds does not know {unit.path!r}; give every unit that is called its seconds")
    check_seconds(f"unit_seconds[{unit.path!r}]", seconds)
    return seconds


def _bound(seconds: float, compute: float, transfer: float) -> Bound:
    if seconds > max(compute, transfer) * (1 + BOUND_TOLERANCE):
        return "buffer"
    return "compute" if compute >= transfer else "link"


def _spans(steady: SteadyPass, compute: str) -> tuple[Span, ...]:
    """Events of the steady pass on its own clock, cut to its duration."""
    return tuple(
        Span(
            kind="compute" if event.donor is None else "copy",
            device=event.donor or compute,
            unit=event.unit,
            start_seconds=max(0.0, event.start - steady.start),
            end_seconds=min(steady.seconds, event.end - steady.start),
        )
        for event in steady.events
    )
