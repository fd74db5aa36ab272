"""A plan as an image for the host's preview: the model from left to right, coloured by the homes of its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from alloc_spec import human_size
from device_placement import Estimate, PlacementPlan, UnitPlacement

if TYPE_CHECKING:
    import torch
    from PIL import ImageDraw

WIDTH: Final = 960
HEIGHT: Final = 360
_MARGIN: Final = 32
_TOP: Final = 84
_BASE: Final = 264
_MAX_BARS: Final = 224
"""Beyond that a bar is thinner than 4 pixels; neighbours are then drawn as one."""

_BACKGROUND: Final = "#ffffff"
_INK: Final = "#1c2430"
_MUTED: Final = "#5b6675"
COLOURS: Final = ("#2f6fb5", "#e08a1e", "#3a9b62", "#8d5bb0", "#c2475a", "#4fa7b8", "#8a7340", "#6f7785")
"""The compute device first, then the donors in order."""


def picture(plan: PlacementPlan, estimate: Estimate | None = None) -> torch.Tensor:
    """Draw a plan.

    Args:
        plan: what lives where.
        estimate: adds a line with the predicted pass.

    Returns:
        The host's kind of image: float32 of shape (1, HEIGHT, WIDTH, 3), values from 0 to 1.
    """
    import torch
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (WIDTH, HEIGHT), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    _text(draw, 24, f"{human_size(plan.size_bytes)} on {', '.join((plan.compute, *plan.donors))}", size=20, fill=_INK)
    _text(draw, 54, _subtitle(plan, estimate), size=14, fill=_MUTED)
    _bars(draw, plan)
    _legend(draw, plan)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(1, HEIGHT, WIDTH, 3).to(torch.float32) / 255


def columns(units: Sequence[UnitPlacement]) -> list[Sequence[UnitPlacement]]:
    """Units in the order of the model, neighbours together where there are more than fit."""
    chunk = max(1, -(-len(units) // _MAX_BARS))
    return [units[start : start + chunk] for start in range(0, len(units), chunk)]


def _subtitle(plan: PlacementPlan, estimate: Estimate | None) -> str:
    if not plan.streamed_bytes:
        return f"everything resident on {plan.compute}"
    streamed = f"{human_size(plan.streamed_bytes)} sent to {plan.compute} a step"
    if estimate is None:
        return streamed
    if estimate.slowdown is None:
        return f"{streamed}, {estimate.transfer_seconds:.3g} s on the busiest link"
    return f"{streamed}; predicted {estimate.slowdown:.2f} x all resident, bound by the {estimate.bound}"


def _bars(draw: ImageDraw.ImageDraw, plan: PlacementPlan) -> None:
    stretches = columns(plan.units)
    highest = max((sum(unit.size_bytes for unit in column) for column in stretches), default=0)
    if not highest:
        return
    pitch = (WIDTH - 2 * _MARGIN) / len(stretches)
    width = min(pitch - min(3.0, pitch * 0.2), 40.0)
    for index, column in enumerate(stretches):
        left = _MARGIN + index * pitch + (pitch - width) / 2
        y = float(_BASE)
        for name, colour in _coloured(plan):
            height = sum(unit.bytes_on(name) for unit in column) * (_BASE - _TOP) / highest
            if height:
                draw.rectangle((left, y - height, left + width, y), fill=colour)
                y -= height


def _legend(draw: ImageDraw.ImageDraw, plan: PlacementPlan) -> None:
    for index, (name, colour) in enumerate(_coloured(plan)):
        held = plan.bytes_on(name)
        share = held / plan.size_bytes if plan.size_bytes else 0.0
        role = "computes, holds" if name == plan.compute else "holds"
        left = _MARGIN + index % 3 * (WIDTH - 2 * _MARGIN) // 3
        top = _BASE + 24 + index // 3 * 24
        draw.rectangle((left, top, left + 14, top + 14), fill=colour)
        _text(draw, top - 1, f"{name} {role} {human_size(held)} ({share:.1%})", size=14, fill=_INK, left=left + 22)


def _coloured(plan: PlacementPlan) -> list[tuple[str, str]]:
    return [(name, COLOURS[index % len(COLOURS)]) for index, name in enumerate((plan.compute, *plan.donors))]


def _text(draw: ImageDraw.ImageDraw, top: float, words: str, *, size: int, fill: str, left: float = _MARGIN) -> None:
    from PIL import ImageFont

    draw.text((left, top), words, fill=fill, font=ImageFont.load_default(size))
