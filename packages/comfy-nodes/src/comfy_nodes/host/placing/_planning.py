"""From a request and the sizes of a model to a plan, a prediction and a report; for a dry run from the header alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import alloc_spec
from alloc_spec import AllocationSpec, Dialect, Donated
from block_discovery import BlockDiscoveryError, BlockTree
from comfy_nodes.host._errors import ModelFileError, PlacementRefusedError
from comfy_nodes.host._request import PlacementReport, PlacementRequest
from comfy_nodes.host.app._machine import default_device, device_names, known_device, machine, name_of
from comfy_nodes.host.placing._auto import Choice, choose
from comfy_nodes.host.placing._headers import read_model_header
from comfy_nodes.host.placing._layers import Sizes, layer_tree
from device_placement import PlacementPlan, plan, predict, render_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and where it came from.

    Attributes:
        tree: the layers that were planned.
        plan: home of every layer.
        report: the same for people, with the machine that it was made for.
    """

    tree: BlockTree
    plan: PlacementPlan
    report: PlacementReport


def plan_file(path: str | Path, request: PlacementRequest, *, prefix: str | None = None) -> PlacementReport:
    """Plan a file from its header alone; nothing is loaded.

    Args:
        path: a safetensors or GGUF file.
        request: where the model computes and what is asked for; without an allocation, `"auto"` is taken.
        prefix: of the model's names in the file; by default that of the diffusion model in a checkpoint, else none.

    Raises:
        ModelFileError: the file is missing, malformed or incomplete.
        HostError: a device is not there, or the model cannot be placed.
        alloc_spec.AllocSpecError: the allocation does not fit this machine or model.
        device_placement.PlacementError: neither do the blocks of the model.
    """
    header = read_model_header(path)
    tree = tree_of(path, header.sizes, header.prefix if prefix is None else prefix)
    asked = request if request.is_placed else replace(request, allocation="auto")
    return plan_tree(tree, asked, compute_device(request), subject=Path(path).name).report


def tree_of(path: str | Path, sizes: Sizes, prefix: str) -> BlockTree:
    """The layers of a model as its file names them.

    Raises:
        ModelFileError: the names are no model's.
    """
    try:
        return layer_tree(sizes, prefix=prefix)
    except BlockDiscoveryError as error:
        raise ModelFileError(path, error.reason, "choose the file of a model") from error


def compute_device(request: PlacementRequest) -> str:
    """Name of the device that computes: asked for, named by the allocation, or the host's.

    Raises:
        UnknownDeviceError: this machine does not have it.
    """
    spec = request.allocation if isinstance(request.allocation, AllocationSpec) else None
    named = request.compute_device or (spec.compute_device if spec is not None else None)
    return default_device() if named is None else name_of(known_device(named))


def plan_tree(tree: BlockTree, request: PlacementRequest, compute: str, *, subject: str) -> Planned:
    """Plan a model whose layers are known, for a compute device that is known.

    Raises:
        HostError: a device is not there, a donor computes, or no layer can live elsewhere.
        alloc_spec.AllocSpecError: the allocation does not fit this machine or model.
        device_placement.PlacementError: neither do the blocks of the model.
    """
    if all(unit.kind == "rest" for unit in tree.units):
        raise PlacementRefusedError(
            subject,
            "none of its layers can bring its weights over from another device",
            "load it with the plain node, whole on one device",
        )
    if isinstance(request.allocation, AllocationSpec):
        choice = _asked(tree, request.allocation, compute, subject)
    else:
        choice = choose(tree, compute, tuple(name for name in device_names() if name != compute), policy=request.policy)
    placed = plan(tree, choice.spec, choice.hardware, policy=request.policy)
    estimate = predict(placed, choice.hardware, compute_seconds=request.compute_seconds)
    lines = [f"{subject}: {alloc_spec.explain(choice.spec)}", *choice.reasons]
    lines.append(render_table(placed, choice.hardware, estimate))
    if placed.slot_bytes:
        lines.append(
            f"ComfyUI copies what lives elsewhere when a layer uses it; the {placed.slots} slots are the room that the "
            f"plan leaves for these copies on {compute}"
        )
    report = PlacementReport(
        subject=subject, plan=placed, hardware=choice.hardware, estimate=estimate, text="\n".join(lines)
    )
    return Planned(tree=tree, plan=placed, report=report)


def _asked(tree: BlockTree, spec: AllocationSpec, compute: str, subject: str) -> Choice:
    """An allocation that was given, for this model: controls move no more than there is."""
    for name in spec.devices:
        known_device(name)
    donors = tuple(name for name in spec.devices if name != compute)
    hardware = machine(compute, donors or _implied_donors(spec, compute))
    asked_bytes = next((entry.amount.total_bytes for entry in spec.entries if isinstance(entry.amount, Donated)), 0)
    if spec.dialect is Dialect.CONTROLS and asked_bytes > tree.size_bytes:
        clamped = replace(spec, entries=_clamped(spec, tree.size_bytes))
        note = (
            f"note: {alloc_spec.human_size(asked_bytes)} were to be moved, and {subject} has "
            f"{alloc_spec.human_size(tree.size_bytes)}: all of it that can be moved is moved; 0 keeps it"
        )
        return Choice(spec=clamped, hardware=hardware, reasons=(note,))
    return Choice(spec=spec, hardware=hardware)


def _implied_donors(spec: AllocationSpec, compute: str) -> tuple[str, ...]:
    """An allocation that names the compute device alone leaves the rest to the cpu."""
    return () if compute == "cpu" or spec.rest_device == compute else ("cpu",)


def _clamped(spec: AllocationSpec, model_bytes: int) -> tuple[alloc_spec.Entry, ...]:
    return tuple(
        replace(entry, amount=Donated(total_bytes=model_bytes)) if isinstance(entry.amount, Donated) else entry
        for entry in spec.entries
    )
