"""Write the example workflows of the pack, in the form that ComfyUI's editor saves, and a picture beside each.

Run `uv run python tools/node_examples.py` to write them into the pack, with `--check` to see whether they are current.
The graphs are in example_graphs.py; inputs and outputs of our nodes come from their table, the host's from here;
example_pictures.py draws the pictures, which the host's template browser shows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from comfy_nodes.nodes._table import TABLE
from example_graphs import EXAMPLES
from example_parts import Example, Node

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("example_workflows")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a kind of node takes and gives.

    Attributes:
        sockets: inputs that are linked, with their types, in order.
        widgets: inputs with a widget, in order.
        outputs: types of the outputs.
    """

    sockets: Mapping[str, str] = field(default_factory=dict)
    widgets: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


_SAMPLER: Final = {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT"}
HOST_KINDS: Final[Mapping[str, Kind]] = {
    "CLIPTextEncode": Kind(sockets={"clip": "CLIP"}, widgets=("text",), outputs=("CONDITIONING",)),
    "FluxGuidance": Kind(sockets={"conditioning": "CONDITIONING"}, widgets=("guidance",), outputs=("CONDITIONING",)),
    "LTXVConditioning": Kind(
        sockets={"positive": "CONDITIONING", "negative": "CONDITIONING"},
        widgets=("frame_rate",),
        outputs=("CONDITIONING", "CONDITIONING"),
    ),
    "EmptyLatentImage": Kind(widgets=("width", "height", "batch_size"), outputs=("LATENT",)),
    "EmptySD3LatentImage": Kind(widgets=("width", "height", "batch_size"), outputs=("LATENT",)),
    "EmptyHunyuanLatentVideo": Kind(widgets=("width", "height", "length", "batch_size"), outputs=("LATENT",)),
    "EmptyLTXVLatentVideo": Kind(widgets=("width", "height", "length", "batch_size"), outputs=("LATENT",)),
    "KSampler": Kind(
        sockets=_SAMPLER,
        widgets=("seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
        outputs=("LATENT",),
    ),
    "KSamplerAdvanced": Kind(
        sockets=_SAMPLER,
        widgets=(
            "add_noise",
            "noise_seed",
            "control_after_generate",
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "start_at_step",
            "end_at_step",
            "return_with_leftover_noise",
        ),
        outputs=("LATENT",),
    ),
    "VAEDecode": Kind(sockets={"samples": "LATENT", "vae": "VAE"}, outputs=("IMAGE",)),
    "SaveImage": Kind(sockets={"images": "IMAGE"}, widgets=("filename_prefix",)),
    "SaveAnimatedWEBP": Kind(
        sockets={"images": "IMAGE"}, widgets=("filename_prefix", "fps", "lossless", "quality", "method")
    ),
    "PreviewAny": Kind(sockets={"source": "*"}),
    "PreviewImage": Kind(sockets={"images": "IMAGE"}),
    "LoadImage": Kind(widgets=("image", "upload"), outputs=("IMAGE", "MASK")),
    "LoraLoaderModelOnly": Kind(
        sockets={"model": "MODEL"}, widgets=("lora_name", "strength_model"), outputs=("MODEL",)
    ),
    "ControlNetApplyAdvanced": Kind(
        sockets={
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "control_net": "CONTROL_NET",
            "image": "IMAGE",
        },
        widgets=("strength", "start_percent", "end_percent"),
        outputs=("CONDITIONING", "CONDITIONING"),
    ),
    "CLIPVisionEncode": Kind(
        sockets={"clip_vision": "CLIP_VISION", "image": "IMAGE"}, widgets=("crop",), outputs=("CLIP_VISION_OUTPUT",)
    ),
    "unCLIPConditioning": Kind(
        sockets={"conditioning": "CONDITIONING", "clip_vision_output": "CLIP_VISION_OUTPUT"},
        widgets=("strength", "noise_augmentation"),
        outputs=("CONDITIONING",),
    ),
}
"""The host's own nodes that the examples use; a test holds them to the host."""

FRONTEND_WIDGETS: Final = frozenset({"control_after_generate", "upload"})
"""Widgets that the editor adds by itself: they are saved, and are no inputs of the host."""


def kind_of(name: str) -> Kind:
    """What a node takes and gives.

    Raises:
        KeyError: neither our table nor `HOST_KINDS` has it.
    """
    if name in HOST_KINDS:
        return HOST_KINDS[name]
    row = TABLE[name]
    return Kind(
        sockets={widget.name: widget.io_type for widget in row.widgets if widget.kind == "LINK"},
        widgets=tuple(widget.name for widget in row.widgets if widget.kind != "LINK"),
        outputs=tuple(output.io_type for output in row.outputs),
    )


def workflow(example: Example) -> dict[str, Any]:
    """The example as the editor saves it.

    Raises:
        KeyError: a node is not known, or a link comes from a node that does not stand before.
        ValueError: an input is given that the node does not have, or the types of a link differ.
    """
    ids = {node.name: index for index, node in enumerate(example.nodes, start=1)}
    links: list[list[Any]] = []
    for node in example.nodes:
        kind = kind_of(node.kind)
        unknown = set(node.inputs) - set(kind.sockets) - set(kind.widgets)
        if unknown:
            raise ValueError(f"{example.name}: {node.kind} has no input {', '.join(sorted(unknown))}")
        for slot, (socket, wanted) in enumerate(kind.sockets.items()):
            if socket in node.inputs:
                source, output = node.inputs[socket]
                given = kind_of(next(each.kind for each in example.nodes if each.name == source)).outputs[output]
                if "*" not in (given, wanted) and given != wanted:
                    raise ValueError(f"{example.name}: {socket} of {node.name} is a {wanted}, not a {given}")
                links.append([len(links) + 1, ids[source], output, ids[node.name], slot, given])
    places = _places(example)
    nodes = [_saved(node, ids, links, places[node.name]) for node in example.nodes]
    note = {
        "id": len(nodes) + 1,
        "type": "MarkdownNote",
        "pos": [0, -260],
        "size": [420, 220],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [example.note],
    }
    return {
        "revision": 0,
        "last_node_id": len(nodes) + 1,
        "last_link_id": len(links),
        "nodes": [note, *nodes],
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _depth(node: Node, example: Example) -> int:
    """Number of nodes on the longest way to a node: its column in the editor."""
    sources = [value[0] for value in node.inputs.values() if isinstance(value, tuple)]
    return max((1 + _depth(each, example) for each in example.nodes if each.name in sources), default=0)


_GAP: Final = 80
"""Between two nodes of a column: room for the title, which the editor draws above a node's place."""


def _height(node: Node) -> int:
    return 90 + 26 * len(kind_of(node.kind).widgets)


def _places(example: Example) -> dict[str, tuple[int, int]]:
    """Where each node is in the editor: columns by depth, centred, in each of them one below the other."""
    columns = {node.name: _depth(node, example) for node in example.nodes}
    ends: dict[int, int] = {}
    above = {}
    for node in example.nodes:
        above[node.name] = ends.get(columns[node.name], -_GAP) + _GAP
        ends[columns[node.name]] = above[node.name] + _height(node)
    tallest = max(ends.values())
    return {name: (column * 480, above[name] + (tallest - ends[column]) // 2) for name, column in columns.items()}


def _saved(
    node: Node, ids: Mapping[str, int], links: Sequence[Sequence[Any]], place: tuple[int, int]
) -> dict[str, Any]:
    kind = kind_of(node.kind)
    number = ids[node.name]
    into = {link[4]: link[0] for link in links if link[3] == number}
    out = {
        slot: [link[0] for link in links if link[1] == number and link[2] == slot] for slot in range(len(kind.outputs))
    }
    return {
        "id": number,
        "type": node.kind,
        "pos": list(place),
        "size": [420, _height(node)],
        "flags": {},
        "order": number,
        "mode": 0,
        "inputs": [
            {"name": name, "type": io_type, "link": into.get(slot)}
            for slot, (name, io_type) in enumerate(kind.sockets.items())
        ],
        "outputs": [
            {"name": io_type, "type": io_type, "links": out[slot], "slot_index": slot}
            for slot, io_type in enumerate(kind.outputs)
        ],
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": [_value(node, name) for name in kind.widgets],
    }


def _value(node: Node, name: str) -> Any:
    """Value of a widget: given, or the default of our table; for a device without one, the usual first card."""
    if name in node.inputs:
        return node.inputs[name]
    if node.kind not in TABLE:
        raise ValueError(f"{node.kind} needs a value for {name}")
    default = TABLE[node.kind].default_of(name)
    return "cuda:0" if default is None else default


def pages() -> dict[Path, dict[str, Any]]:
    """Every example as it is saved, by its path relative to the repository."""
    return {FOLDER / f"{example.name}.json": workflow(example) for example in EXAMPLES}


def text_of(saved: Mapping[str, Any]) -> str:
    """The text of a workflow's file."""
    return json.dumps(saved, indent=1, ensure_ascii=False) + "\n"


def stale(root: Path) -> list[Path]:
    """Workflows and pictures that are missing, out of date or of no example, relative to a repository."""
    from example_pictures import is_current  # Pillow is not for those who only ask what a node takes and gives

    written = pages()
    there = {path.relative_to(root) for ending in ("json", "jpg") for path in (root / FOLDER).glob(f"*.{ending}")}
    found = sorted(there - set(written) - {path.with_suffix(".jpg") for path in written})
    for path, saved in written.items():
        if path not in there or (root / path).read_text(encoding="utf-8") != text_of(saved):
            found.append(path)
        if not is_current(root / path.with_suffix(".jpg"), saved):
            found.append(path.with_suffix(".jpg"))
    return found


def write(root: Path) -> int:
    """Write what is stale and remove what is of no example; return the number of files touched.

    Raises:
        ValueError: a graph is wrong, or its picture is too large.
    """
    from example_pictures import picture

    written = pages()
    outdated = stale(root)
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for path in outdated:
        saved = written.get(path.with_suffix(".json"))
        if saved is None:
            (root / path).unlink()
        elif path.suffix == ".jpg":
            (root / path).write_bytes(picture(saved))
        else:
            (root / path).write_text(text_of(saved), encoding="utf-8")
    return len(outdated)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, or with `--check` report what is out of date and return 1."""
    parser = argparse.ArgumentParser(description="Write the example workflows and their pictures.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when one is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="repository (default: this one)")
    options = parser.parse_args(arguments)
    if not options.check:
        print(f"{write(options.root)} files written or removed")
        return 0
    outdated = stale(options.root)
    for path in outdated:
        print(f"{path}: not what example_graphs.py says; run tools/node_examples.py")
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
