"""Picture of a predicted pass: what the links and the compute device do, from left to right."""

from __future__ import annotations

from alloc_spec import human_seconds
from device_placement._errors import InvalidPlanError
from device_placement._estimate import Estimate, Span
from device_placement.report._svg import MARGIN, WIDTH, box, document, legend, legend_rows, lighter, line, text, ticks
from device_placement.report._svg_plan import device_colours

_LEFT = MARGIN + 118
_RIGHT = WIDTH - MARGIN
_TOP = 92
_LANE_HEIGHT = 44
_LANE_PITCH = 60
_THINNEST = 4.0
"""Boxes thinner than this, in units of the picture, are joined with their neighbours."""


def render_timeline_svg(estimate: Estimate) -> str:
    """Picture of one steady pass as SVG text: a lane of copies for each donor, and the lane of forwards.

    Reddish stretches of the compute lane are waiting for bytes. Readable in light and dark; the pointer shows the
    times.

    Raises:
        InvalidPlanError: the estimate has no timeline, because the compute time was not known.
    """
    if estimate.seconds is None:
        raise InvalidPlanError(
            "the estimate has no timeline; predict with compute_seconds (or unit_seconds) to know when things happen"
        )
    compute = estimate.compute
    donors = [name for name in estimate.peak_bytes if name != compute]
    busy = [name for name in donors if any(span.device == name for span in estimate.spans if span.kind == "copy")]
    colours = device_colours(compute, donors)
    entries = [(colours[compute], "forwards"), *((colours[name], f"copies from {name}") for name in busy)]
    entries.append(("wait", "waiting for bytes"))
    bottom = _TOP + _LANE_PITCH * (len(busy) + 1)
    height = bottom + 52 + 20 * legend_rows(entries)
    scale = (_RIGHT - _LEFT) / estimate.seconds if estimate.seconds else 0.0
    parts = [
        text(MARGIN, 38, f"One pass: {human_seconds(estimate.seconds)} (predicted)", style="ink title"),
        text(MARGIN, 60, _subtitle(estimate), style="muted"),
        *_axis(estimate.seconds, scale, bottom),
    ]
    for lane, name in enumerate([*busy, compute]):
        y = _TOP + lane * _LANE_PITCH
        kind = "compute" if name == compute else "copy"
        spans = [span for span in estimate.spans if (span.kind, span.device) == (kind, name)]
        doing = "computes on" if kind == "compute" else "copies from"
        parts += [
            text(_LEFT - 14, y + 18, doing, style="muted", anchor="end"),
            text(_LEFT - 14, y + 34, name, anchor="end"),
            *([box(_LEFT, y, _RIGHT - _LEFT, _LANE_HEIGHT, fill="wait")] if kind == "compute" else []),
            *_spans(spans, y=y, scale=scale, colour=colours[name]),
        ]
    parts += legend(bottom + 52, entries)
    return document(height, label=f"Timeline of one predicted pass of {human_seconds(estimate.seconds)}", parts=parts)


def _subtitle(estimate: Estimate) -> str:
    compute = human_seconds(estimate.compute_seconds or 0.0)
    slower = f"{estimate.slowdown:.2f} x the {compute} of a resident model" if estimate.slowdown else "no compute"
    reason = {
        "compute": "the compute device",
        "link": "the link",
        "buffer": "the buffers (too few slots, or uneven shares)",
    }
    bound = reason[estimate.bound or "compute"]
    return f"{slower}; bound by {bound}; the busiest link copies for {human_seconds(estimate.transfer_seconds)}"


def _axis(seconds: float, scale: float, bottom: float) -> list[str]:
    parts = []
    for tick in ticks(seconds):
        x = _LEFT + tick * scale
        parts += [
            line(x, _TOP - 8, x, bottom - 8),
            text(x, bottom + 10, human_seconds(tick), style="muted", anchor="middle"),
        ]
    return parts


def _spans(spans: list[Span], *, y: float, scale: float, colour: str) -> list[str]:
    """Boxes of one lane, neighbours differ in their shade; what is too thin to be seen is drawn together."""
    parts = []
    for index, run in enumerate(_runs(spans, thinnest=_THINNEST / scale if scale else 0.0)):
        first, last = run[0], run[-1]
        width = (last.end_seconds - first.start_seconds) * scale
        names = " to ".join(dict.fromkeys((first.unit or "rest", last.unit or "rest")))
        tip = f"{names}: {human_seconds(first.start_seconds)} to {human_seconds(last.end_seconds)}"
        fill = lighter(colour) if index % 2 else colour
        parts.append(
            box(_LEFT + first.start_seconds * scale, y, width - min(0.5, width / 8), _LANE_HEIGHT, fill=fill, tip=tip)
        )
    return parts


def _runs(spans: list[Span], *, thinnest: float) -> list[list[Span]]:
    """Spans in their order; those that follow each other closely are taken together up to `thinnest` seconds."""
    runs: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: span.start_seconds):
        if span.end_seconds <= span.start_seconds:
            continue
        fits = runs and span.end_seconds - runs[-1][0].start_seconds <= thinnest
        if fits and span.start_seconds - runs[-1][-1].end_seconds <= thinnest / 4:
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs
