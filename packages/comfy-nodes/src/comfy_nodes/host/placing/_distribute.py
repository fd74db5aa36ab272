"""Load, patch, distribute: the last step, which gives the layers of a freshly loaded model their homes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management as management
import torch
from torch import nn

from alloc_spec import AllocationSpec, Dialect
from block_discovery import BlockTree
from comfy_nodes.host._request import PlacementReport, PlacementRequest
from comfy_nodes.host.app import _compat
from comfy_nodes.host.app._compiler import sample_without_compiler
from comfy_nodes.host.app._machine import known_device, reserve_bytes
from comfy_nodes.host.placing._layers import Sizes, layer_tree
from comfy_nodes.host.placing._patcher import PlacedPatcher
from comfy_nodes.host.placing._placement import settle
from comfy_nodes.host.placing._planning import plan_tree
from comfy_nodes.host.placing._prepare import Prepared
from device_placement import PlacementPlan

_log = logging.getLogger(__name__)


def distribute(
    patcher: Any, prepared: Prepared, *, subject: str | None = None, prefix: str = ""
) -> tuple[Any, PlacementReport]:
    """Give a fresh model's layers their homes, and return the patcher that respects them.

    The plan made from the header holds where the loaded layers are those of the header; else they are planned now.

    Args:
        patcher: fresh from a loader of the host, classic, all weights in the host's memory.
        prepared: what was asked for and planned before the weights were read.
        subject: what the log calls the model; the names of its files where None.
        prefix: of the modules that are placed; the others are small and stay on the compute device.

    Raises:
        HostError: see `plan_tree`; the patcher is unchanged then.
    """
    model, request = patcher.model, prepared.request
    subject = subject or prepared.subject
    if not request.is_placed:
        text = f"{subject}: loaded by the host for {patcher.load_device}"
        return patcher, PlacementReport(subject=subject, text=text)
    modules = dict(model.named_modules())
    tree = layer_tree(
        model_sizes(model),
        prefix=prefix,
        is_castable=lambda name: hasattr(modules[f"{prefix}{name}"], "comfy_cast_weights"),
    )
    planned = prepared.planned
    if planned is None or _layers_of(planned.tree) != _layers_of(tree):
        planned = plan_tree(tree, request, prepared.compute, subject=subject)
    _log.info("%s", planned.report.text)
    _say_what_it_costs(request, subject)
    if request.eject_models:
        eject(planned.plan)
    homes = {f"{prefix}{name}": torch.device(device) for name, device in homes_of(planned.plan).items()}
    placed = PlacedPatcher.adopt(patcher)
    settle(model, homes, patcher.load_device)
    sample_without_compiler(placed)
    return placed, planned.report


def _layers_of(tree: BlockTree) -> dict[str, dict[str, int]]:
    """Bytes of each layer by unit; files and models name the same ones in different orders."""
    return {unit.path: {layer.name: layer.size_bytes for layer in unit.tensors} for unit in tree.units}


def model_sizes(model: nn.Module) -> Sizes:
    """Shape and bytes of every tensor of a model's state, tied ones once; packed ones with the bytes they take."""
    seen: set[int] = set()
    sizes: dict[str, tuple[Sequence[int], int]] = {}
    for path, module in model.named_modules():
        state: Mapping[str, torch.Tensor | None] = module._parameters | {
            name: buffer for name, buffer in module._buffers.items() if name not in module._non_persistent_buffers_set
        }
        for name, tensor in state.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                sizes[f"{path}.{name}" if path else name] = (tuple(tensor.shape), tensor.nbytes)
    return sizes


def homes_of(plan: PlacementPlan) -> dict[str, str]:
    """Donor of each layer that does not live on the compute device."""
    return {home.name: home.device for unit in plan.units for home in unit.homes if home.device != plan.compute}


def eject(plan: PlacementPlan) -> None:
    """Make room for a plan on its devices: other models move to the host's memory, no more of them than it takes."""
    needs = {donor: plan.bytes_on(donor) for donor in plan.donors} | {plan.compute: plan.compute_peak_bytes}
    for name, size_bytes in needs.items():
        if name != "cpu" and size_bytes:
            management.free_memory(size_bytes + reserve_bytes(name), known_device(name))


def _say_what_it_costs(request: PlacementRequest, subject: str) -> None:
    """One line about what the host would have done itself."""
    if not _compat.dynamic_vram_is_on():
        return
    spec = request.allocation
    only_host = isinstance(spec, AllocationSpec) and spec.dialect is Dialect.CONTROLS and spec.devices[1:] == ("cpu",)
    offer = (
        "; all it moves goes to the cpu, where the host's own paging works as well: the plain node leaves it on"
        if only_host
        else ""
    )
    _log.info("%s: loaded without the host's dynamic VRAM, which does not know donors%s", subject, offer)
