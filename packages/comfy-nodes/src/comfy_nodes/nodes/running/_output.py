"""What the nodes give back to the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_nodes.host import Checkpoint, Loaded
from comfy_nodes.host.app import interface
from comfy_nodes.nodes.table._row import NodeRow


def node_output(*values: Any, text: str = "", shown: Mapping[str, Any] | None = None) -> Any:
    """The values of the outputs, and what the host shows at the node and keeps in its history.

    Args:
        values: one for each output, in order.
        text: shown as the node's text; nothing is when it is empty.
        shown: other things to show, as the host's `ui` classes describe them.
    """
    ui = {**(shown or {}), **({"text": (text,)} if text else {})}
    return interface.comfy_api().io.NodeOutput(*values, ui=ui or None)


def loaded_output(row: NodeRow, loaded: Loaded[Any]) -> Any:
    """What a loader node gives: its models, and its report as the node's text and, where the row says so, an output."""
    value = loaded.value
    models = (value.model, value.clip, value.vae) if isinstance(value, Checkpoint) else (value,)
    report = (loaded.text,) if len(row.outputs) > len(models) else ()
    return node_output(*models, *report, text=loaded.text)
