"""From what a node's inputs say to what the host adapter is asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import alloc_spec
from alloc_spec import AllocSpecError
from comfy_nodes.host import Allocation, PlacementRequest
from comfy_nodes.nodes._controls import MAX_TEXT, Controls, read_controls
from comfy_nodes.nodes.table._row import NodeRow

_log = logging.getLogger(__name__)

AUTO: Final = "auto"


def request_for(row: NodeRow, inputs: Mapping[str, Any], devices: Sequence[str]) -> PlacementRequest:
    """The placement that a node's inputs ask for; what they leave out is filled with the node's defaults.

    Args:
        row: the node.
        inputs: its inputs by name, under any name that they have had.
        devices: names of the devices of this machine, accelerators first.

    Raises:
        ConflictingInputsError: two names of one input have different values.
        InputValueError: a value is of a kind that the input cannot have.
        alloc_spec.AllocSpecError: the allocation cannot be read, or contradicts itself.
    """
    controls = read_controls(inputs, devices)
    if row.layout is None or not row.layout.places:
        return PlacementRequest(compute_device=controls.compute_device)
    return placement(
        controls,
        devices,
        default_gb=_default_gb(row),
        default_eject=bool(row.default_of("eject_models")),
    )


def placement(
    controls: Controls, devices: Sequence[str], *, default_gb: float, default_eject: bool = False
) -> PlacementRequest:
    """The placement that controls ask for; the text decides alone where there is one.

    Args:
        controls: what was asked for.
        devices: names of the devices of this machine, accelerators first.
        default_gb: what is moved where the controls do not say how much.
        default_eject: whether other models make room where the controls do not say so.

    Raises:
        alloc_spec.AllocSpecError: the allocation cannot be read, or contradicts itself.
    """
    compute = controls.compute_device or devices[0]
    eject = default_eject if controls.eject_models is None else controls.eject_models
    allocation = _allocation(controls, compute, devices, default_gb)
    named = allocation.compute_device if isinstance(allocation, alloc_spec.AllocationSpec) else None
    return PlacementRequest(compute_device=named or compute, allocation=allocation, eject_models=eject)


def check_expert(text: str) -> str | None:
    """What is wrong with an allocation text, with a caret at the place; None when nothing is.

    >>> check_expert("cuda:0,2gb;cpu,*"), check_expert("auto"), check_expert("")
    (None, None, None)
    >>> print(check_expert("cuda:0=2gb"))
    expected ',' after the device 'cuda:0', found '='
        cuda:0=2gb
              ^
    an entry is DEVICE,AMOUNT, for example "cuda:0,2gb;cpu,*" - did you mean "cuda:0,2gb"?
    """
    if len(text) > MAX_TEXT:
        return f"an allocation has at most {MAX_TEXT} characters, and this one {len(text)}; shorten it"
    try:
        _read_expert(text)
    except AllocSpecError as error:
        return str(error)
    return None


def _read_expert(text: str) -> Allocation:
    """The allocation of a text; None for an empty one, or for the wire form with nothing in it."""
    stripped = text.strip()
    if not stripped.strip("#"):
        return None
    return AUTO if stripped.lower() == AUTO else alloc_spec.parse(stripped)


def _allocation(controls: Controls, compute: str, devices: Sequence[str], default_gb: float) -> Allocation:
    if (said := _read_expert(controls.expert)) is not None:
        return said
    moved_gb = default_gb if controls.virtual_ram_gb is None else controls.virtual_ram_gb
    donors = controls.donors or ("cpu",)
    if not moved_gb:
        return None
    if list(devices) == ["cpu"] and compute == "cpu" and donors == ("cpu",):
        _log.info("this machine has no device but cpu: the model stays there, and the %s GB are not moved", moved_gb)
        return None
    return alloc_spec.from_controls(compute_device=compute, virtual_ram_gb=moved_gb, donor_device=donors)


def _default_gb(row: NodeRow) -> float:
    default = row.default_of("virtual_ram_gb") or row.default_of("virtual_vram_gb")
    return float(default) if isinstance(default, (int, float)) else 0.0
