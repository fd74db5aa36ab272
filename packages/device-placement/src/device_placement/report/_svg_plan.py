"""Picture of a placement: the model from left to right, every unit a bar, coloured by the homes of its bytes."""

from __future__ import annotations

from collections.abc import Sequence

from alloc_spec import human_size
from device_placement._plan import PlacementPlan, UnitPlacement
from device_placement.report._svg import (
    COMPUTE_COLOUR,
    DONOR_COLOURS,
    MARGIN,
    WIDTH,
    box,
    document,
    legend,
    legend_rows,
    line,
    text,
    ticks,
)
from device_placement.report._units import Unit, share_text, unit_for

_MAX_BARS = 240
"""Beyond that a bar is thinner than 4 pixels; neighbours are then drawn as one."""

_TOP = 128
_BARS_HEIGHT = 200
_LEFT = MARGIN + 52
_RIGHT = WIDTH - MARGIN


def render_svg(plan: PlacementPlan) -> str:
    """Picture of a plan as SVG text.

    Along the model, each bar is a unit, as high as its bytes: at the bottom what is resident, above it what each
    donor holds. The strip on top is the whole model by device. Readable in light and dark; the pointer shows the
    bytes.

    >>> empty = PlacementPlan(compute="cuda:0", donors=(), policy="stripe", slots=2, units=())
    >>> render_svg(empty).startswith("<svg xmlns=")
    True
    """
    colours = device_colours(plan.compute, plan.donors)
    entries = [(colours[name], _legend_text(plan, name)) for name in (plan.compute, *plan.donors)]
    legend_top = _TOP + _BARS_HEIGHT + 62
    height = legend_top + 20 * max(1, legend_rows(entries))
    label = f"Placement of a model of {human_size(plan.size_bytes)} on {', '.join(colours)}"
    parts = [
        text(MARGIN, 38, f"{human_size(plan.size_bytes)} on {_listed(list(colours))}", style="ink title"),
        text(MARGIN, 60, _subtitle(plan), style="muted"),
        *_strip(plan, colours),
        *_bars(plan, colours),
        *legend(legend_top, entries),
    ]
    return document(height, label=label, parts=parts)


def device_colours(compute: str, donors: Sequence[str]) -> dict[str, str]:
    """One colour a device, the same in every picture of one plan; compute device first."""
    return {compute: COMPUTE_COLOUR} | {
        name: DONOR_COLOURS[index % len(DONOR_COLOURS)] for index, name in enumerate(donors)
    }


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _subtitle(plan: PlacementPlan) -> str:
    if not plan.streamed_bytes:
        return f"everything resident on {plan.compute}, nothing is streamed"
    return (
        f"policy {plan.policy}: {human_size(plan.streamed_bytes)} streamed to {plan.compute} a pass, "
        f"through {plan.slots} slots of {human_size(plan.slot_bytes)}"
    )


def _legend_text(plan: PlacementPlan, name: str) -> str:
    held = plan.bytes_on(name)
    role = "resident on" if name == plan.compute else "streamed from"
    return f"{role} {name}: {human_size(held)} ({share_text(held, plan.size_bytes)})"


def _strip(plan: PlacementPlan, colours: dict[str, str]) -> list[str]:
    """The whole model as one bar."""
    parts = []
    x = float(MARGIN)
    width = WIDTH - 2 * MARGIN
    for name, colour in colours.items():
        held = plan.bytes_on(name)
        if held:
            share = width * held / plan.size_bytes
            parts.append(box(x, 78, max(0.5, share - 1), 14, fill=colour, tip=_legend_text(plan, name)))
            x += share
    return parts


def _bars(plan: PlacementPlan, colours: dict[str, str]) -> list[str]:
    """Axis, gridlines and one bar a unit (or a few neighbours)."""
    chunk = max(1, -(-len(plan.units) // _MAX_BARS))
    columns = [plan.units[start : start + chunk] for start in range(0, len(plan.units), chunk)]
    highest = max((sum(placed.size_bytes for placed in column) for column in columns), default=0)
    unit = unit_for(highest)
    base = _TOP + _BARS_HEIGHT
    parts = []
    for tick in ticks(highest / (1 << unit.exponent), count=4):
        y = base - (_BARS_HEIGHT * tick * (1 << unit.exponent) / highest if highest else 0)
        parts += [line(_LEFT - 6, y, _RIGHT, y), text(_LEFT - 12, y + 4, f"{tick:g}", style="muted", anchor="end")]
    parts.append(text(_LEFT - 12, _TOP - 14, unit.name, style="muted", anchor="end"))
    pitch = (_RIGHT - _LEFT) / max(1, len(columns))
    gap = min(3.0, pitch * 0.2)
    width = min(pitch - gap, 40.0)
    for index, column in enumerate(columns):
        x = _LEFT + index * pitch + (pitch - width) / 2
        parts += _bar(column, colours, x=x, width=width, scale=_BARS_HEIGHT / highest if highest else 0, unit=unit)
    return [*parts, *_names(columns, pitch)]


def _bar(
    column: Sequence[UnitPlacement], colours: dict[str, str], *, x: float, width: float, scale: float, unit: Unit
) -> list[str]:
    """One bar, the compute device's part at the bottom."""
    held = {name: sum(placed.bytes_on(name) for placed in column) for name in colours}
    homes = ", ".join(f"{name} {unit.of(size)} {unit.name}" for name, size in held.items() if size)
    tip = f"{_name(column)}: {homes}"
    parts = []
    y = float(_TOP + _BARS_HEIGHT)
    for name, colour in colours.items():
        if held[name]:
            height = held[name] * scale
            y -= height
            parts.append(box(x, y, width, max(0.5, height), fill=colour, tip=tip))
    return parts


def _name(column: Sequence[UnitPlacement]) -> str:
    first, last = (placed.path or "rest" for placed in (column[0], column[-1]))
    return first if first == last else f"{first} to {last}"


def _names(columns: Sequence[Sequence[UnitPlacement]], pitch: float) -> list[str]:
    """Names under the first unit of each stretch of siblings, as far as they have room."""
    parts = []
    free_from = 0.0
    stretch: str | None = None
    for index, column in enumerate(columns):
        parent = column[0].path.rpartition(".")[0] or column[0].path or "rest"
        x = _LEFT + index * pitch
        if parent != stretch and x >= free_from and x + 6.6 * len(parent) <= _RIGHT + MARGIN / 2:
            parts += [line(x, _TOP + _BARS_HEIGHT, x, _TOP + _BARS_HEIGHT + 16)]
            parts.append(text(x + 4, _TOP + _BARS_HEIGHT + 18, parent, style="muted"))
            free_from = x + 6.6 * len(parent) + 14
        stretch = parent
    parts.append(text(_RIGHT, _TOP + _BARS_HEIGHT + 36, "order of the model →", style="muted", anchor="end"))
    return parts
