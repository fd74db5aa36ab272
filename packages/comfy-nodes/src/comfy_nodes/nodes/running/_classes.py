"""The host's node classes, made from the table: one small class for each row, none derived from a node of the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy_nodes import host
from comfy_nodes.host.app import interface
from comfy_nodes.nodes.running import _checkpoint_parts, _load, _tools
from comfy_nodes.nodes.running._output import loaded_output
from comfy_nodes.nodes.running._request import check_expert, request_for
from comfy_nodes.nodes.running._schema import schema_of
from comfy_nodes.nodes.table._loaders import Loader
from comfy_nodes.nodes.table._row import NodeRow

Execute = Callable[[type, Mapping[str, Any]], Any]
EXPERT = "expert_mode_allocations"


def node_class(row: NodeRow) -> type:
    """The host's class of one node.

    Raises:
        ImportError: the host has no node API that classes can be made for.
    """
    base: type = interface.comfy_api().io.ComfyNode
    execute = _execute_of(row)

    def define_schema(cls: type, /) -> Any:
        return schema_of(row)

    def run(cls: type, /, **inputs: Any) -> Any:
        return execute(cls, inputs)

    members: dict[str, Any] = {
        "__module__": __name__,
        "__doc__": row.summary,
        "define_schema": classmethod(define_schema),
        "execute": classmethod(run),
    }
    if EXPERT in row.input_names:
        members["validate_inputs"] = classmethod(_validate)
    if f"unet_{EXPERT}" in row.input_names:
        members["validate_inputs"] = classmethod(_validate_parts)
    if row.node_id in _tools.ALWAYS_NEW:
        members["fingerprint_inputs"] = classmethod(_tools.never_the_same)
    return type(row.node_id, (base,), members)


def _validate(cls: type, expert_mode_allocations: str | None = "") -> bool | str:
    """The host's check before a run. Its argument names decide which inputs the host itself does not check."""
    if not isinstance(expert_mode_allocations, str):
        return True  # it comes through a socket and is not known yet
    return check_expert(expert_mode_allocations) or True


def _validate_parts(
    cls: type,
    unet_expert_mode_allocations: str | None = "",
    clip_expert_mode_allocations: str | None = "",
) -> bool | str:
    """The same for a checkpoint whose parts are placed one by one: the first text that cannot be read is reported."""
    said = (_validate(cls, text) for text in (unet_expert_mode_allocations, clip_expert_mode_allocations))
    return next((wrong for wrong in said if wrong is not True), True)


def runs(row: NodeRow) -> Callable[..., Any]:
    """The function that does what a node is for; the host contract follows it to find what the node needs."""
    if row.loader is not None:
        return _load.function_of(row.loader)
    return {**_checkpoint_parts.EXECUTES, **_tools.EXECUTES}[row.node_id]


def _execute_of(row: NodeRow) -> Execute:
    return _loader_execute(row, row.loader) if row.loader is not None else runs(row)


def _loader_execute(row: NodeRow, loader: Loader) -> Execute:
    own = {widget.name for widget in loader.widgets}

    def execute(cls: type, inputs: Mapping[str, Any]) -> Any:
        values = {name: value for name, value in inputs.items() if name in own}
        added = {name: value for name, value in inputs.items() if name not in own}
        request = request_for(row, added, host.device_names())
        bar = interface.progress_bar(1)
        loaded = _load.run(loader, values, request)
        bar.update(1)
        return loaded_output(row, loaded)

    return execute
