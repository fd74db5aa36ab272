"""Draw the example workflows as the small pictures that ComfyUI's template browser shows for them.

Run `uv run python tools/example_pictures.py` after you saved an example from the editor into example_workflows/; with
`--check` it writes nothing and exits with 1 when a picture is missing or stale. A picture is drawn from the saved graph
alone: its nodes where the editor puts them, ours in colour, links as curves in a colour per type, and above them what
its note says. Bytes of a JPEG differ between versions of Pillow, so pictures are compared by their pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageStat, UnidentifiedImageError

from comfy_nodes.nodes.table._table import TABLE

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("example_workflows")
SIZE: Final = (400, 300)
LARGEST: Final = 12 * 1024
"""Most bytes of a picture: 28 of them stay below a third of a megabyte in the wheel."""

SAME: Final = 6.0
"""Mean difference of pixels, of 255, up to which two JPEGs show the same."""

_QUALITIES: Final = (80, 70, 60, 50, 40)
"""Of the JPEG; the first that gives a file small enough is taken."""
_FINE: Final = 3
"""Drawn this many times as large and scaled down, which smooths curves and letters."""
_MARGIN: Final = 12.0
_NOTE_LINES: Final = 3
_LARGEST_STEP: Final = 0.42
"""Pixels for a unit of the editor at most, so that a graph of two nodes does not fill the picture."""

_GROUND: Final = "#1d2027"
_INK: Final = "#f2f3f5"
_OURS: Final = ("#0f766e", "#134e4a")
_THEIRS: Final = ("#4b5260", "#343945")
"""Colours of a node's title and body."""

_LINKS: Final[Mapping[str, str]] = {
    "MODEL": "#a78bfa",
    "CLIP": "#facc15",
    "VAE": "#f87171",
    "CONDITIONING": "#fb923c",
    "LATENT": "#f472b6",
    "IMAGE": "#60a5fa",
}
_OTHER_LINK: Final = "#9ca3af"

Box = tuple[float, float, float, float]


def picture(saved: Mapping[str, Any]) -> bytes:
    """A workflow, as the editor saves it, as the bytes of a JPEG of `SIZE`.

    Raises:
        ValueError: the picture is larger than `LARGEST`.
    """
    image = Image.new("RGB", (SIZE[0] * _FINE, SIZE[1] * _FINE), _GROUND)
    pen = ImageDraw.Draw(image)
    top = _write_note(pen, next(each["widgets_values"][0] for each in saved["nodes"] if each["type"] == "MarkdownNote"))
    nodes = {each["id"]: each for each in saved["nodes"] if each["type"] != "MarkdownNote"}
    boxes = _boxes(nodes, top)
    for _, source, _, target, slot, io_type in saved["links"]:
        _draw_link(pen, boxes[source], boxes[target], slot / max(1, len(nodes[target]["inputs"])), io_type)
    for number, each in nodes.items():
        _draw_node(pen, boxes[number], each["type"])
    small = image.resize(SIZE, Image.Resampling.LANCZOS)
    for quality in _QUALITIES:
        file = io.BytesIO()
        small.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LARGEST:
            return file.getvalue()
    raise ValueError(f"the picture has {file.tell()} bytes, more than {LARGEST}; give the workflow fewer nodes")


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over all pixels and channels, of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def is_current(path: Path, saved: Mapping[str, Any]) -> bool:
    """Whether a file is the picture of a workflow: a JPEG of the size that shows its graph, and not too large."""
    if not path.is_file() or path.stat().st_size > LARGEST:
        return False
    try:
        with Image.open(path) as image, Image.open(io.BytesIO(picture(saved))) as fresh:
            alike = (image.format, image.size) == ("JPEG", SIZE)
            alike = alike and difference(image.convert("RGB"), fresh.convert("RGB")) < SAME
    except UnidentifiedImageError:
        return False
    return alike


def stale(root: Path) -> list[Path]:
    """Pictures that are missing, do not show their workflow, or have none, relative to a repository."""
    files = sorted((root / FOLDER).glob("*.json"))
    wanted = {file.with_suffix(".jpg"): json.loads(file.read_text(encoding="utf-8")) for file in files}
    found = [path for path in sorted((root / FOLDER).glob("*.jpg")) if path not in wanted]
    found += [path for path, saved in wanted.items() if not is_current(path, saved)]
    return [path.relative_to(root) for path in found]


def write(root: Path) -> int:
    """Draw what is stale and remove what has no workflow; return the number of files touched.

    Raises:
        ValueError: a picture is too large.
    """
    outdated = stale(root)
    for path in outdated:
        workflow = (root / path).with_suffix(".json")
        if workflow.is_file():
            (root / path).write_bytes(picture(json.loads(workflow.read_text(encoding="utf-8"))))
        else:
            (root / path).unlink()
    return len(outdated)


def words(name: str) -> list[str]:
    """The parts of a node's type, where it may be broken into lines.

    >>> words("UNETLoaderDisTorch2MultiGPU")
    ['UNET', 'Loader', 'DisTorch2', 'MultiGPU']
    """
    parts = re.findall(r"KSampler|DisTorch2?|MultiGPU|CLIP|UNET|GGUF|[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*", name)
    return parts or [name]


def _lines(parts: Sequence[str], font: ImageFont.FreeTypeFont, width: float, gap: str) -> list[str]:
    """Parts put together to lines that are at most so wide; a single part may be wider."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = lines[-1] + gap + part
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _font(pixels: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which is the same everywhere.

    Raises:
        RuntimeError: this Pillow was built without FreeType.
    """
    font = ImageFont.load_default(pixels * _FINE)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow has no FreeType and cannot draw letters of a size; install a wheel of Pillow")
    return font


def _write_note(pen: ImageDraw.ImageDraw, note: str) -> float:
    """Write the note at the top; return where the graph may begin."""
    font = _font(13)
    width = (SIZE[0] - 2 * _MARGIN) * _FINE
    lines = _lines(re.sub(r"[`*]", "", note).split(), font, width, " ")
    if len(lines) > _NOTE_LINES:
        lines = [*lines[: _NOTE_LINES - 1], f"{lines[_NOTE_LINES - 1].rstrip('.,;')} …"]
    for row, line in enumerate(lines):
        pen.text((_MARGIN * _FINE, (9 + 17 * row) * _FINE), line, fill=_INK, font=font)
    return (9 + 17 * len(lines) + 9) * _FINE


def _boxes(nodes: Mapping[int, Mapping[str, Any]], top: float) -> dict[int, Box]:
    """Where each node is drawn: the graph fills what the note leaves, each axis with a separate scale."""
    lefts, tops = ([each["pos"][axis] for each in nodes.values()] for axis in (0, 1))
    ends = [[each["pos"][axis] + each["size"][axis] for each in nodes.values()] for axis in (0, 1)]
    room = SIZE[0] * _FINE - 2 * _MARGIN * _FINE, SIZE[1] * _FINE - _MARGIN * _FINE - top
    extent = max(ends[0]) - min(lefts), max(ends[1]) - min(tops)
    across, down = (min(there / wanted, _LARGEST_STEP * _FINE) for there, wanted in zip(room, extent, strict=True))
    left = _MARGIN * _FINE + (room[0] - across * extent[0]) / 2 - across * min(lefts)
    top += (room[1] - down * extent[1]) / 2 - down * min(tops)
    return {
        number: (
            left + across * each["pos"][0],
            top + down * each["pos"][1],
            left + across * (each["pos"][0] + each["size"][0]),
            top + down * (each["pos"][1] + each["size"][1]),
        )
        for number, each in nodes.items()
    }


def _draw_link(pen: ImageDraw.ImageDraw, source: Box, target: Box, part: float, io_type: str) -> None:
    """A curve from the right of one node to the left of another, which is `part` of the way down it."""
    (x0, y0), (x1, y1) = (source[2], source[1] + 6 * _FINE), (target[0], target[1] + 6 * _FINE)
    y1 += part * (target[3] - y1)
    bend = max(12.0 * _FINE, (x1 - x0) / 2)
    points = []
    for step in range(33):
        t = step / 32
        x = (1 - t) ** 3 * x0 + 3 * (1 - t) ** 2 * t * (x0 + bend) + 3 * (1 - t) * t**2 * (x1 - bend) + t**3 * x1
        y = (1 - t) ** 2 * (1 + 2 * t) * y0 + t**2 * (3 - 2 * t) * y1
        points.append((x, y))
    pen.line(points, fill=_LINKS.get(io_type, _OTHER_LINK), width=int(1.5 * _FINE), joint="curve")


def _draw_node(pen: ImageDraw.ImageDraw, box: Box, name: str) -> None:
    """A box with a bar at its top and the node's type in it, in as large letters as fit."""
    bar, body = _OURS if name in TABLE else _THEIRS
    left, top, right, bottom = box
    pen.rounded_rectangle(box, radius=4 * _FINE, fill=body, outline=bar, width=_FINE)
    pen.rounded_rectangle((left, top, right, top + 7 * _FINE), radius=3 * _FINE, fill=bar)
    room = right - left - 6 * _FINE, bottom - top - 10 * _FINE
    for pixels in (13, 12, 11, 10, 9, 8, 7):
        font = _font(pixels)
        lines = _lines(words(name), font, room[0], "")
        step = (pixels + 1) * _FINE
        if len(lines) * step <= room[1] and max(font.getlength(line) for line in lines) <= room[0]:
            break
    first = top + 8 * _FINE + (room[1] - len(lines) * step) / 2
    for row, line in enumerate(lines):
        pen.text(((left + right) / 2, first + row * step), line, fill=_INK, font=font, anchor="ma")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, or with `--check` list what is out of date and return 1."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the example workflows.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when one is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: this one)")
    options = parser.parse_args(arguments)
    if not options.check:
        print(f"{write(options.root)} pictures written or removed")
        return 0
    outdated = stale(options.root)
    for path in outdated:
        print(f"{path} does not show its workflow: run `uv run python tools/example_pictures.py`")
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
