"""Workflows of older releases as the editor opens them: its nodes get the names and positions of today's inputs.

The editor gives the values of a saved graph to widgets by position, and those of a graph in API format by name. A name
that a node no longer has would be dropped without a word, and a text would stand where a number is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from comfy_nodes.nodes.older._rewrite import declared_name, rewrite_inputs, rewrite_prompt
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._widgets import Devices

_LINKED: Final = ["", 0]
"""Stands for the value of an input that comes through a socket, as it would in a prompt."""


def reopen(document: Mapping[str, Any], rows: Mapping[str, NodeRow], devices: Sequence[str]) -> dict[str, Any]:
    """What the editor is about to open, in today's words.

    Args:
        document: ``{"prompt": ...}`` with a graph in API format, or ``{"nodes": [...]}`` with nodes as the editor saves
            them; what is neither is left out.
        rows: our nodes by id.
        devices: names of the devices of this machine, accelerators first.
    """
    prompt, nodes = document.get("prompt"), document.get("nodes")
    opened: dict[str, Any] = {}
    if isinstance(prompt, Mapping):
        opened["prompt"] = {
            number: _complete(node, rows, devices) for number, node in rewrite_prompt(prompt, rows, devices).items()
        }
    if isinstance(nodes, list):
        opened["nodes"] = [reopen_node(node, rows, devices) for node in nodes]
    return opened


def reopen_node(node: Any, rows: Mapping[str, NodeRow], devices: Sequence[str]) -> Any:
    """A saved node with the values, and the names of its sockets, that today's node has; the same one if it has them.

    >>> from comfy_nodes.nodes.table._table import TABLE
    >>> saved = {"type": "UnetLoaderGGUFDisTorchMultiGPU", "widgets_values": ["a.gguf", "cuda:0", "cuda:0,0.2;cpu,*"]}
    >>> reopen_node(saved, TABLE, ["cuda:0", "cpu"])["widgets_values"]
    ['a.gguf', 'cuda:0', 4.0, 'cpu', 'cuda:0,0.2;cpu,*']
    """
    if not isinstance(node, Mapping) or not isinstance(node.get("widgets_values"), list):
        return node
    row = rows.get(str(node.get("type")))
    if row is None or row.layout is None or not row.layout.places:
        return node
    defaults = _defaults(row, devices)
    values = _by_name(node, list(defaults))
    linked = {slot["name"] for slot in _slots(node) if slot.get("link") is not None}
    said = {name: _LINKED if name in linked else value for name, value in values.items()}
    today = rewrite_inputs(row, said, devices)
    if today == said and len(values) >= len(defaults):
        return node
    kept = {_today(row, name): value for name, value in values.items() if name in linked}
    shown = {name: value for name, value in today.items() if value is not _LINKED} | kept
    return {
        **node,
        "inputs": [_renamed(row, slot) for slot in _slots(node) if _today(row, slot["name"]) or slot["name"] in linked],
        "widgets_values": [shown.get(name, default) for name, default in defaults.items()],
    }


def _complete(node: Any, rows: Mapping[str, NodeRow], devices: Sequence[str]) -> Any:
    """A node of a prompt with the defaults of what it leaves out, where editors keep a value of the graph before."""
    row = rows.get(str(node.get("class_type"))) if isinstance(node, Mapping) else None
    if row is None or row.layout is None or not row.layout.places or not isinstance(node.get("inputs"), Mapping):
        return node
    defaults = {name: value for name, value in _defaults(row, devices).items() if value is not None}
    return {**node, "inputs": defaults | node["inputs"]}


def _defaults(row: NodeRow, devices: Sequence[str]) -> dict[str, Any]:
    """Defaults of the inputs with a widget, in order; None where the editor takes the first choice."""
    return {
        widget.name: devices[0] if widget.default is None and isinstance(widget.choices, Devices) else widget.default
        for widget in row.widgets
        if widget.kind != "LINK"
    }


def _slots(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    slots = node.get("inputs")
    if not isinstance(slots, list):
        return []
    return [slot for slot in slots if isinstance(slot, dict) and isinstance(slot.get("name"), str)]


def _by_name(node: Mapping[str, Any], todays_names: Sequence[str]) -> dict[str, Any]:
    """The saved values under the names that they were saved with; under today's, where the editor noted no names.

    Editors of 2025 and later note a socket for every widget, in order; earlier ones only for those that were turned
    into sockets.
    """
    values = node["widgets_values"]
    names = [slot["name"] for slot in _slots(node) if slot.get("widget")]
    return dict(zip(names if len(names) == len(values) else todays_names, values, strict=False))


def _today(row: NodeRow, name: str) -> str | None:
    """Today's name of an input; None where the node has none for it."""
    return name if name in row.input_names else declared_name(row, name)


def _renamed(row: NodeRow, slot: dict[str, Any]) -> dict[str, Any]:
    name = _today(row, slot["name"]) or slot["name"]
    if name == slot["name"]:
        return slot
    widget = {"widget": {**slot["widget"], "name": name}} if isinstance(slot.get("widget"), dict) else {}
    return {**slot, "name": name, **widget}
