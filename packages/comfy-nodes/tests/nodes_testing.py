"""What tests of the nodes share: workflows as the editor saves and sends them, and a machine with two cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_nodes.nodes.table._table import TABLE

DEVICES = ("cuda:0", "cuda:1", "cpu")
"""A machine with two cards."""


def sent_by_editor(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt that the editor makes of a saved workflow: values go to widgets by position, whatever they are.

    Only what our nodes need: values beyond a node's widgets are dropped, and missing ones are the widgets' defaults.
    """
    prompt = {}
    for node in saved["nodes"]:
        widgets = [widget for widget in TABLE[node["type"]].widgets if widget.kind != "LINK"]
        values = node["widgets_values"]
        inputs = {
            widget.name: values[position] if position < len(values) else widget.default
            for position, widget in enumerate(widgets)
        }
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
