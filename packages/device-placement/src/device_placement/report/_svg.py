"""Small SVG strings: text, boxes, ticks, and one palette that reads on light and on dark paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape

WIDTH = 960
MARGIN = 32

DONOR_COLOURS = ("#e8833a", "#2fa58d", "#9b6fd0", "#d9577f", "#b39b2e", "#6b8e3d")
COMPUTE_COLOUR = "#3f7ad9"

_STYLE = (
    "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:12px}"
    ".paper{fill:#ffffff;stroke:#e2e6ec}.ink{fill:#1d2733}.muted{fill:#66717f}.rule{stroke:#d9dfe6}.wait{fill:#f7dcd6}"
    "@media (prefers-color-scheme:dark){.paper{fill:#161b22;stroke:#2c343e}.ink{fill:#e6ebf1}.muted{fill:#98a4b1}"
    ".rule{stroke:#323b46}.wait{fill:#5b2f2c}}"
    ".title{font-size:17px;font-weight:600}"
)


def document(height: float, *, label: str, parts: Iterable[str]) -> str:
    """A picture on a sheet of paper that follows the reader's colour scheme.

    Args:
        height: of the picture, in the units of `WIDTH`.
        label: what a screen reader says.
        parts: elements, drawn in order.
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {number(height)}" width="{WIDTH}" '
            f'height="{number(height)}" role="img" aria-label="{escape(label)}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="paper" x="0.5" y="0.5" width="{WIDTH - 1}" height="{number(height - 1)}" rx="10"/>',
            *parts,
            "</svg>",
        ]
    )


def text(x: float, y: float, content: str, *, style: str = "ink", anchor: str = "start") -> str:
    """One line of text; `style` is ``"ink"``, ``"muted"`` or ``"ink title"``."""
    return f'<text class="{style}" x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escape(content)}</text>'


def box(x: float, y: float, width: float, height: float, *, fill: str, tip: str = "") -> str:
    """A filled box, with what it says under the pointer; `fill` is a colour or the name of a class."""
    paint = f'fill="{fill}"' if fill.startswith("#") else f'class="{fill}"'
    shape = f'<rect {paint} x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f"{shape}><title>{escape(tip)}</title></rect>" if tip else f"{shape}/>"


def lighter(colour: str) -> str:
    """The colour mixed with a quarter of white.

    >>> lighter("#000000")
    '#404040'
    """
    channels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(channel * 0.75 + 64):02x}" for channel in channels)


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    """A thin rule."""
    ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
    return f'<line class="rule" {ends}/>'


def legend(y: float, entries: Sequence[tuple[str, str]]) -> list[str]:
    """Colours and what they mean in one row, broken where the paper ends."""
    parts = []
    x = float(MARGIN)
    for colour, meaning in entries:
        width = 24 + 6.6 * len(meaning) + 22
        if x > MARGIN and x + width > WIDTH - MARGIN:
            x = MARGIN
            y += 20
        parts += [box(x, y - 10, 12, 12, fill=colour), text(x + 18, y, meaning)]
        x += width
    return parts


def legend_rows(entries: Sequence[tuple[str, str]]) -> int:
    """Rows that `legend` takes."""
    return sum(part.startswith("<rect") and f'x="{MARGIN}"' in part for part in legend(0, entries))


def ticks(largest: float, *, count: int = 6) -> list[float]:
    """Round numbers from 0 to `largest`, about `count` of them.

    >>> ticks(0.68)
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    """
    if largest <= 0:
        return [0.0]
    rough = largest / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.8)
    return [round(index * step, 12) for index in range(int(largest / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A coordinate, short: at most two decimals.

    >>> number(12.0), number(3.14159), number(-0.001)
    ('12', '3.14', '0')
    """
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")
