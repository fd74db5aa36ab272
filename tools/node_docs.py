"""Write the documents of the nodes from their table: a page a node, the host's texts, the table of docs/nodes.md.

Run `uv run python tools/node_docs.py` to write, with `--check` to see whether what is there is current (exit code 1
when it is not). Nothing but the table is read; the host is not needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from comfy_nodes.nodes._controls import FIELD_OF
from comfy_nodes.nodes.table._layouts import LAYOUTS
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._siblings import SIBLINGS, SiblingNode
from comfy_nodes.nodes.table._table import TABLE
from comfy_nodes.nodes.table._widgets import Devices, Files, Fixed, OfHostNode, Widget

ROOT = Path(__file__).resolve().parents[1]
PACK = Path("packages/comfy-nodes/src/comfy_nodes")
NODES_PAGE = Path("docs/nodes.md")
LOCALE = Path("locales/en/nodeDefs.json")
BEGIN, END = "<!-- table: written by tools/node_docs.py -->", "<!-- end of table -->"

_ALLOCATIONS = """
An allocation text names devices and amounts: `cuda:0,6gb;cpu,*` keeps 6 GB on `cuda:0` and puts the rest on the cpu.
Amounts are sizes (`6gb`), shares of the model (`25%`), fractions of the device (`0.5`), `*` for the rest, `free-1gb`
or `auto`. The word `auto` alone lets Torchspan choose the placement with the least slowdown, and says why. A text that
cannot be read is refused before anything is loaded, with a caret at the place.
"""
_PREDICTED = """
The log shows what lives where and the predicted slowdown: the time of a pass over that of the same pass with every
weight resident. How long that one takes is not known before it has run, so the slowdown is given for four lengths of a
pass: read off the one that comes closest to yours.
"""
_OLDER = """
Workflows of older releases open with this node: the names {names} are understood too, and a switch where the donor
stands is read as `use_other_vram`.
"""


def pages() -> dict[Path, str]:
    """Every file that is generated as a whole, relative to the repository, with its text."""
    written = {PACK / "web" / "docs" / f"{row.node_id}.md": node_page(row) for row in TABLE.values()}
    written |= {PACK / "web" / "docs" / f"{node.node_id}.md": sibling_page(node) for node in SIBLINGS}
    written[LOCALE] = json.dumps(node_texts(), indent=2, ensure_ascii=False) + "\n"
    return written


def node_page(row: NodeRow) -> str:
    """The page of one node, in Markdown."""
    parts = [f"# {row.display_name}", row.summary]
    if row.deprecated:
        parts.append("Superseded: it works and stays, but new workflows do better with the DisTorch nodes.")
    if row.widgets:
        lines = ["| input | meaning | default |", "|---|---|---|"]
        lines += [
            f"| `{widget.name}` | {widget.tooltip} {_values(widget)} | {_default(widget)} |" for widget in row.widgets
        ]
        parts.append("\n".join(lines))
    lines = ["| output | meaning |", "|---|---|"]
    parts.append("\n".join([*lines, *(f"| `{output.name}` | {output.tooltip} |" for output in row.outputs)]))
    if row.layout is not None and row.layout.places:
        others = [name for name in FIELD_OF if name not in row.input_names]
        older = _OLDER.format(names=", ".join(f"`{name}`" for name in others))
        parts += [_ALLOCATIONS.strip(), _PREDICTED.strip(), older.strip()]
    return "\n\n".join(parts) + "\n"


def sibling_page(node: SiblingNode) -> str:
    """The page of a node of another pack, in Markdown."""
    what = "where swapped blocks go" if node.swaps else "where it runs"
    comes = "comes through a socket" if node.way == "socket" else "is chosen in a list"
    lines = [
        f"# {node.base} (MultiGPU)",
        f"`{node.base}` of {node.pack} with one more input: `{node.device}`, {what}; it {comes}. All other inputs and "
        "outputs are those of that pack, whose own page describes them.",
        f"This node exists when {node.pack} is loaded, whichever of the two packs the host loads first.",
    ]
    if node.offload:
        lines.append(f"`{node.offload}` is where the model goes when it is not used.")
    if node.emits_device:
        lines.append("The device is an output too, so that the nodes that follow can run on the same one.")
    return "\n\n".join(lines) + "\n"


def node_texts() -> dict[str, object]:
    """The host's texts for every node of the table, by id."""
    return {
        row.node_id: {
            "display_name": row.display_name,
            "description": row.summary,
            "inputs": {widget.name: {"name": widget.name, "tooltip": widget.tooltip} for widget in row.widgets},
            "outputs": {
                str(index): {"name": output.name, "tooltip": output.tooltip} for index, output in enumerate(row.outputs)
            },
        }
        for row in TABLE.values()
    }


def nodes_table() -> str:
    """The table of docs/nodes.md: every node by menu entry."""
    lines = ["| nodes | menu | what for | inputs added |", "|---|---|---|---|"]
    for layout in LAYOUTS:
        rows = [row for row in TABLE.values() if row.layout == layout]
        ids = ", ".join(f"`{row.node_id}`" for row in rows)
        added = ", ".join(f"`{widget.name}`" for widget in layout.widgets)
        lines.append(f"| {ids} | {layout.category} | {layout.summary} | {added} |")
    for row in TABLE.values():
        if row.layout is None:
            inputs = ", ".join(f"`{name}`" for name in row.input_names) or "none"
            lines.append(f"| `{row.node_id}` | {row.category} | {row.summary} | {inputs} |")
    for pack in dict.fromkeys(node.pack for node in SIBLINGS):
        nodes = [node for node in SIBLINGS if node.pack == pack]
        ids = ", ".join(f"`{node.node_id}`" for node in nodes)
        added = ", ".join(dict.fromkeys(f"`{node.device}`" for node in nodes))
        lines.append(
            f"| {ids} | {nodes[0].category} | Nodes of {pack} with a device; only when it is loaded. | {added} |"
        )
    return "\n".join(lines)


def stale(root: Path) -> Iterator[Path]:
    """Yield the generated files under `root` that are missing, out of date, or belong to no node any more."""
    written = pages()
    for path, text in written.items():
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text:
            yield path
    for path in sorted((root / PACK / "web" / "docs").glob("*.md")):
        if path.relative_to(root) not in written:
            yield path.relative_to(root)
    page = root / NODES_PAGE
    if not page.is_file() or page.read_text(encoding="utf-8") != _with_table(page):
        yield NODES_PAGE


def write(root: Path) -> int:
    """Write every generated file under `root`; return how many there are."""
    written: Mapping[Path, str] = pages() | {NODES_PAGE: _with_table(root / NODES_PAGE)}
    for path, text in written.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    for path in (root / PACK / "web" / "docs").glob("*.md"):
        if path.relative_to(root) not in written:
            path.unlink()
    return len(written)


def _with_table(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{nodes_table()}\n{END}{after}"


def _values(widget: Widget) -> str:
    """What an input may be, in a few words."""
    match widget.choices:
        case Devices(before=before):
            return f"({', '.join((*before, 'a device of this machine'))})"
        case Fixed(options=options):
            return f"({', '.join(options)})"
        case OfHostNode(node=node, input=name):
            return f"(what `{node}` offers as `{name}`)"
        case Files(folders=folders):
            return f"(a file of {', '.join(folders)})"
    if widget.minimum is not None:
        return f"({widget.minimum:g} to {widget.maximum:g})"
    return f"({widget.io_type})" if widget.kind == "LINK" else ""


def _default(widget: Widget) -> str:
    if widget.default is None:
        return "the first device" if isinstance(widget.choices, Devices) else ""
    return f"`{json.dumps(widget.default)}`" if widget.default != "" else "empty"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, or with `--check` report what is out of date and return 1."""
    parser = argparse.ArgumentParser(description="Write the nodes' documents from their table.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: this one)")
    options = parser.parse_args(arguments)
    if not options.check:
        print(f"{write(options.root)} files written")
        return 0
    outdated = list(stale(options.root))
    for path in outdated:
        print(f"{path}: not what the table says; run tools/node_docs.py")
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
