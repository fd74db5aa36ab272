"""From a row of the table to the host's description of a node."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from comfy_nodes.host.app import interface
from comfy_nodes.nodes.running import _choices
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._widgets import Output, Widget

_TYPED: Final = {"FLOAT": "Float", "INT": "Int", "BOOLEAN": "Boolean", "STRING": "String"}


def schema_of(row: NodeRow) -> Any:
    """The description of a node, as this host wants it; what an older host does not know is left out."""
    return schema(
        node_id=row.node_id,
        display_name=row.display_name,
        category=row.category,
        description=row.summary,
        inputs=[input_of(widget) for widget in row.widgets],
        outputs=[output_of(output) for output in row.outputs],
        is_output_node=row.is_output,
        is_deprecated=row.deprecated,
        accept_all_inputs=row.layout is not None,
    )


def schema(**values: Any) -> Any:
    """A description from those of the values that this host knows."""
    io = interface.comfy_api().io
    known = {field.name for field in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in values.items() if name in known})


def input_of(widget: Widget) -> Any:
    """The description of an input."""
    io = interface.comfy_api().io
    common: dict[str, Any] = {"optional": widget.optional, "tooltip": widget.tooltip}
    if widget.kind == "LINK":
        return io.Custom(widget.io_type).Input(widget.name, **common)
    common["default"] = _choices.default(widget)
    if widget.choices is not None:
        return io.Combo.Input(widget.name, options=_choices.options(widget.choices), **common)
    typed = getattr(io, _TYPED[widget.kind])
    if widget.kind == "STRING":
        return typed.Input(widget.name, multiline=widget.multiline, **common)
    limits = {"min": widget.minimum, "max": widget.maximum, "step": widget.step}
    return typed.Input(widget.name, **({} if widget.kind == "BOOLEAN" else limits), **common)


def output_of(output: Output) -> Any:
    """The description of an output."""
    io = interface.comfy_api().io
    return io.Custom(output.io_type).Output(display_name=output.name, tooltip=output.tooltip)
