"""Prompts of older workflows in the words of today's nodes, so that the host's own checks accept them.

The host checks a prompt against the declared inputs before a node sees it: it drops names that it does not know and
refuses a switch where a list of devices stands. So values of older workflows are translated before those checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import alloc_spec
from alloc_spec import AllocSpecError
from comfy_nodes.nodes._controls import FIELD_OF, IGNORED, Controls, other_memory, read_controls
from comfy_nodes.nodes._errors import NodeError
from comfy_nodes.nodes.table._row import NodeRow

_GIGABYTES = ("virtual_ram_gb", "virtual_vram_gb")
_EXPERT = "expert_mode_allocations"


def rewrite_prompt(prompt: Mapping[str, Any], rows: Mapping[str, NodeRow], devices: Sequence[str]) -> dict[str, Any]:
    """The prompt with the inputs of our placement nodes in today's form; all else is unchanged.

    Args:
        prompt: the host's prompt: node number -> ``class_type`` and ``inputs``.
        rows: our nodes by id.
        devices: names of the devices of this machine, accelerators first.
    """
    return {number: _rewrite_node(node, rows, devices) for number, node in prompt.items()}


def rewrite_inputs(row: NodeRow, inputs: Mapping[str, Any], devices: Sequence[str]) -> dict[str, Any]:
    """The inputs of one placement node as it declares them today.

    Contradictions and values that cannot be read are left alone: the node itself complains about them.

    >>> from comfy_nodes.nodes.table._table import TABLE
    >>> old = {"unet_name": "a.gguf", "device": "cuda:0", "virtual_vram_gb": 6.0, "use_other_vram": False}
    >>> rewrite_inputs(TABLE["UnetLoaderGGUFDisTorchMultiGPU"], old, ["cuda:0", "cpu"])
    {'unet_name': 'a.gguf', 'compute_device': 'cuda:0', 'virtual_ram_gb': 6.0, 'donor_device': 'cpu'}
    """
    moved = _allocation_out_of_the_number(inputs)
    if not _is_older(row, moved):
        return moved
    own = {name: value for name, value in moved.items() if name not in FIELD_OF and name not in IGNORED}
    said = {name: value for name, value in moved.items() if name in FIELD_OF}
    linked = {name: value for name, value in said.items() if isinstance(value, list)}
    try:
        controls = read_controls({name: value for name, value in said.items() if name not in linked}, devices)
        declared = _declare(row, controls, devices)
    except (NodeError, AllocSpecError):
        return moved
    links = {declared_name(row, name) or name: value for name, value in linked.items()}
    return own | declared | links


def declared_name(row: NodeRow, name: str) -> str | None:
    """Today's name on a node of an input of a placement under any of its names; None where the node has none for it."""
    return _declared(row, FIELD_OF[name]) if name in FIELD_OF else None


def _rewrite_node(node: Any, rows: Mapping[str, NodeRow], devices: Sequence[str]) -> Any:
    if not isinstance(node, Mapping) or not isinstance(node.get("inputs"), Mapping):
        return node
    row = rows.get(str(node.get("class_type")))
    if row is None or row.layout is None or not row.layout.places:
        return node
    return {**node, "inputs": rewrite_inputs(row, node["inputs"], devices)}


def _is_older(row: NodeRow, inputs: Mapping[str, Any]) -> bool:
    names = set(row.input_names)
    return isinstance(inputs.get("donor_device"), bool) or any(
        (name in FIELD_OF or name in IGNORED) and name not in names for name in inputs
    )


def _allocation_out_of_the_number(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow of 1.5.0 has its allocation where the gigabytes stand since 1.6."""
    moved = dict(inputs)
    for name in _GIGABYTES:
        value = moved.get(name)
        if isinstance(value, str) and "," in value and not moved.get(_EXPERT):
            moved[_EXPERT] = value
            del moved[name]
    return moved


def _declared(row: NodeRow, field: str) -> str | None:
    """Today's name of a field on a node."""
    return next((name for name in row.input_names if FIELD_OF.get(name) == field), None)


def _declare(row: NodeRow, controls: Controls, devices: Sequence[str]) -> dict[str, Any]:
    """What the controls say, in the inputs that the node declares."""
    expert = controls.expert
    inputs: dict[str, Any] = {}
    for field in ("compute_device", "virtual_ram_gb", "donors", "eject_models"):
        name = _declared(row, field)
        value = getattr(controls, field)
        if value is None:
            continue
        if field == "eject_models":
            name = name or field  # a node without the switch heeds it all the same
        if field == "donors":
            value = _one_donor(name, controls, devices)
            expert = expert or ("" if value is not None else _wire(row, controls, devices))
        if name is not None and value is not None:
            inputs[name] = value
    return inputs | ({_EXPERT: expert} if expert else {})


def _one_donor(name: str | None, controls: Controls, devices: Sequence[str]) -> str | bool | None:
    """The donors as the value of the declared input; None when it cannot say them."""
    donors = controls.donors or ()
    if name != "use_other_vram":
        return donors[0] if len(donors) == 1 else None
    if donors == ("cpu",):
        return False
    return True if donors == other_memory(devices, controls.compute_device or devices[0]) else None


def _wire(row: NodeRow, controls: Controls, devices: Sequence[str]) -> str:
    """The controls as text, for donors that the declared input cannot say; empty when nothing is moved."""
    compute = controls.compute_device or devices[0]
    default = row.default_of(_declared(row, "virtual_ram_gb") or "")
    gigabytes = default if controls.virtual_ram_gb is None else controls.virtual_ram_gb
    if not isinstance(gigabytes, (int, float)) or not gigabytes:
        return ""
    return str(
        alloc_spec.from_controls(compute_device=compute, virtual_ram_gb=gigabytes, donor_device=controls.donors or ())
    )
