"""Three tables for the log: what each device gives, what the model consists of, and what lives where in the end."""

from __future__ import annotations

import re
from collections.abc import Sequence

from alloc_spec import human_seconds
from device_placement._estimate import Estimate
from device_placement._hardware import Hardware
from device_placement._plan import PlacementPlan, UnitPlacement
from device_placement.planning._predict import predict
from device_placement.report._units import Unit, round_seconds, share_text, unit_for

_GAP = "  "


def render_table(plan: PlacementPlan, hardware: Hardware | None = None, estimate: Estimate | None = None) -> str:
    """Tables of a plan in plain ASCII: device allocation, layer distribution, final assignment.

    Sizes are in GiB, those of a small model in MiB or KiB.

    Args:
        plan: what to show.
        hardware: adds total and free memory of each device.
        estimate: adds a line with the predicted pass. Where it does not know the compute time and `hardware` is given,
            another line has the slowdown of passes that take more or less time by themselves.

    >>> from device_placement import TensorHome
    >>> devices = ["cuda:0", "cpu", "cpu"]
    >>> homes = tuple(TensorHome(name=f"0.{i}", size_bytes=1 << 30, device=d) for i, d in enumerate(devices))
    >>> block = UnitPlacement(path="blocks.0", class_name="Block", kind="block", homes=homes)
    >>> plan = PlacementPlan(compute="cuda:0", donors=("cpu",), policy="stripe", slots=2, units=(block,))
    >>> print(render_table(plan))
    ======================= Device allocation ========================
    device  role      model GiB  share  2 slots GiB  together GiB
    ------------------------------------------------------------------
    cuda:0  computes       1.00  33.3%         4.00          5.00
    cpu     donor          2.00  66.7%                       2.00
    ======================= Layer distribution =======================
    layers          units  tensors  model GiB   share  GiB sent a pass
    ------------------------------------------------------------------
    blocks.* Block      1        3       3.00  100.0%             2.00
    ======================== Final assignment ========================
    device  whole units  parts of units  tensors  model GiB  share
    ------------------------------------------------------------------
    cuda:0            0               1        1       1.00  33.3%
    cpu               0               1        2       2.00  66.7%
    ------------------------------------------------------------------
    policy stripe
    """
    unit = unit_for(plan.size_bytes)
    tables = [
        ("Device allocation", _devices(plan, hardware, unit)),
        ("Layer distribution", _layers(plan, unit)),
        ("Final assignment", _assignment(plan, unit)),
    ]
    bodies = [(title, _aligned(rows)) for title, rows in tables]
    notes = [f"policy {plan.policy}"]
    if estimate is not None:
        notes.append(_prediction(plan, estimate, unit))
        if hardware is not None and estimate.seconds is None and estimate.transfer_seconds:
            notes.append(_slowdowns(plan, hardware, estimate.transfer_seconds))
    notes += [f"warning: {warning}" for warning in plan.warnings]
    width = max(64, *(len(line) for _, body in bodies for line in body))
    lines = []
    for title, (head, *body) in bodies:
        lines += [f" {title} ".center(width, "="), head, "-" * width, *body]
    return "\n".join([*lines, "-" * width, *notes])


def _devices(plan: PlacementPlan, hardware: Hardware | None, unit: Unit) -> list[list[str]]:
    """What each device has and what it gives."""
    memory = [] if hardware is None else [f"total {unit.name}", f"free {unit.name}"]
    sizes = [f"model {unit.name}", "share", f"{plan.slots} slots {unit.name}", f"together {unit.name}"]
    rows = [["device", "role", *memory, *sizes]]
    for name in (plan.compute, *plan.donors):
        computes = name == plan.compute
        held = plan.bytes_on(name)
        slots = plan.slots * plan.slot_bytes if computes else 0
        measured = []
        if hardware is not None:
            device = hardware.device(name)
            measured = [unit.of(device.total_bytes), unit.of(device.free_bytes)]
        role = "computes" if computes else "donor"
        share = share_text(held, plan.size_bytes)
        rows.append(
            [name, role, *measured, unit.of(held), share, unit.of(slots) if computes else "", unit.of(held + slots)]
        )
    return rows


def _layers(plan: PlacementPlan, unit: Unit) -> list[list[str]]:
    """What the model consists of, equal units together, in the order of the model."""
    groups: dict[str, list[UnitPlacement]] = {}
    for placed in plan.units:
        groups.setdefault(_layer_name(placed), []).append(placed)
    rows = [["layers", "units", "tensors", f"model {unit.name}", "share", f"{unit.name} sent a pass"]]
    for name, members in groups.items():
        size = sum(placed.size_bytes for placed in members)
        tensors = sum(len(placed.homes) for placed in members)
        sent = sum(placed.streamed_bytes(plan.compute) for placed in members)
        counts = [str(len(members)), str(tensors)]
        rows.append([name, *counts, unit.of(size), share_text(size, plan.size_bytes), unit.of(sent)])
    return rows


def _layer_name(placed: UnitPlacement) -> str:
    """``blocks.* Block`` for every ``blocks.N`` of that class."""
    if placed.kind == "rest":
        return "rest (always resident)"
    return " ".join(part for part in (re.sub(r"(?<![^.])\d+(?![^.])", "*", placed.path), placed.class_name) if part)


def _assignment(plan: PlacementPlan, unit: Unit) -> list[list[str]]:
    """What lives on each device in the end."""
    rows = [["device", "whole units", "parts of units", "tensors", f"model {unit.name}", "share"]]
    for name in (plan.compute, *plan.donors):
        held = [placed for placed in plan.units if any(home.device == name for home in placed.homes)]
        whole = sum(all(home.device == name for home in placed.homes) for placed in held)
        tensors = sum(home.device == name for placed in held for home in placed.homes)
        size = plan.bytes_on(name)
        counts = [str(whole), str(len(held) - whole), str(tensors)]
        rows.append([name, *counts, unit.of(size), share_text(size, plan.size_bytes)])
    return rows


def _prediction(plan: PlacementPlan, estimate: Estimate, unit: Unit) -> str:
    busy = human_seconds(estimate.transfer_seconds)
    sent = f"{unit.of(plan.streamed_bytes)} {unit.name} sent a pass, {busy} on the busiest link"
    if estimate.seconds is None and not estimate.transfer_seconds:
        return "predicted: no slowdown, since a steady pass sends nothing"
    if estimate.seconds is None:
        return f"predicted: {sent}; the compute time is not known"
    slower = f" ({estimate.slowdown:.2f} x all resident)" if estimate.slowdown else ""
    return f"predicted: {human_seconds(estimate.seconds)} a pass{slower}, bound by the {estimate.bound}; {sent}"


def _slowdowns(plan: PlacementPlan, hardware: Hardware, transfer_seconds: float) -> str:
    """The slowdown of passes that take less than the transfers, about as much, and more."""
    first, *others = [
        (human_seconds(seconds), predict(plan, hardware, compute_seconds=seconds).slowdown)
        for seconds in round_seconds(transfer_seconds)
    ]
    more = "".join(f"; {seconds}: {slowdown:.2f} x" for seconds, slowdown in others)
    return f"predicted slowdown of a pass that takes {first[0]} with all resident: {first[1]:.2f} x{more}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines: names to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    texts = {0} | {column for column, head in enumerate(rows[0]) if head == "role"}
    return [
        _GAP.join(
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
