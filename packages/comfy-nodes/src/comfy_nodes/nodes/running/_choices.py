"""What a combo offers on this machine and host, at the moment when it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_nodes import host
from comfy_nodes.host.app import folders, interface
from comfy_nodes.nodes.table._widgets import Choices, Devices, Files, Fixed, OfHostNode, Widget


def options(choices: Choices) -> list[str]:
    """The choices, in order."""
    match choices:
        case Devices(before=before):
            return [*before, *host.device_names()]
        case OfHostNode(node=node, input=name):
            return _host_options(node, name)
        case Files(folders=wanted, suffix=suffix, qualified=qualified):
            return [
                f"{folder}/{name}" if qualified else name
                for folder in wanted
                for name in folders.file_names(folder)
                if name.lower().endswith(suffix)
            ]
        case Fixed(options=fixed):
            return list(fixed)


def default(widget: Widget) -> str | float | int | bool | None:
    """Default of an input in a new node: for a device, the first of this machine where the table names none."""
    if widget.default is None and isinstance(widget.choices, Devices):
        return options(widget.choices)[0]
    return widget.default


def host_inputs(node: str) -> Mapping[str, Any]:
    """All inputs of a node of the host by name, as the host describes them; empty where it has no such node."""
    found = interface.registered_nodes().get(node)
    if found is None:
        return {}
    described: Mapping[str, Mapping[str, Any]] = found.INPUT_TYPES()
    return {**described.get("required", {}), **described.get("optional", {})}


def _host_options(node: str, name: str) -> list[str]:
    """What an input of a host's node offers, in either of the two ways that hosts write it."""
    described = host_inputs(node).get(name)
    if described is None:
        return []
    if isinstance(described[0], str):
        return list(described[1].get("options", ()))
    return list(described[0])
