"""Load, patch, distribute: the last step, which gives the layers of a freshly loaded model their homes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as management
import torch
from torch import nn

from alloc_spec import AllocationSpec, Dialect
from comfy_nodes.host import _compat
from comfy_nodes.host._compiler import sample_without_compiler
from comfy_nodes.host._headers import has_header, loaded_sizes, read_sizes
from comfy_nodes.host._layers import Sizes, layer_tree
from comfy_nodes.host._machine import known_device, reserve_bytes
from comfy_nodes.host._patcher import PlacedPatcher
from comfy_nodes.host._placement import settle
from comfy_nodes.host._planning import compute_device, plan_tree
from comfy_nodes.host._request import PlacementReport, PlacementRequest
from device_placement import PlacementPlan

_log = logging.getLogger(__name__)

CPU = torch.device("cpu")


def check_files(
    paths: Sequence[str | Path], request: PlacementRequest, *, prefix: str = "", dtype: torch.dtype | None = None
) -> None:
    """Refuse what can be known to fail before anything is loaded.

    A missing or cut-off file; a device that is not there; and where it can be known how large the loaded model will be,
    an allocation that does not fit.

    Args:
        paths: of the files.
        request: where the model computes and where its bytes live.
        prefix: of the names in the file that are placed.
        dtype: type in which the host loads weights; None where it chooses.

    Raises:
        HostError: see `plan_tree`.
    """
    compute_device(request)
    sizes = [read_sizes(path) for path in paths if has_header(path) or not Path(path).is_file()]
    if isinstance(request.allocation, AllocationSpec):
        for name in request.allocation.devices:
            known_device(name)
    if not request.is_placed or len(paths) != 1 or not sizes or not (dtype or _compat.keeps_half_precision()):
        return
    loaded = loaded_sizes(paths[0], None if dtype is None else dtype.itemsize)
    if loaded is not None:
        plan_tree(layer_tree(loaded, prefix=prefix), request, subject=Path(paths[0]).name)


def device_options(request: PlacementRequest) -> dict[str, Any]:
    """The host's model options that load a model for the compute device and keep it in the host's memory until then."""
    if request.compute_device is None and not request.is_placed:
        return {}
    return {"load_device": known_device(compute_device(request)), "offload_device": CPU}


def distribute(
    patcher: Any, request: PlacementRequest, *, subject: str, prefix: str = ""
) -> tuple[Any, PlacementReport]:
    """Give a fresh model's layers their homes, and return the patcher that respects them.

    Args:
        patcher: fresh from a loader of the host, classic, all weights in the host's memory.
        request: where the model computes and where its bytes live.
        subject: what the log calls the model.
        prefix: of the modules that are placed; the others are small and stay on the compute device.

    Raises:
        HostError: see `plan_tree`; the patcher is untouched then.
    """
    model = patcher.model
    if not request.is_placed:
        text = f"{subject}: loaded by the host for {patcher.load_device}"
        return patcher, PlacementReport(subject=subject, text=text)
    modules = dict(model.named_modules())
    tree = layer_tree(
        model_sizes(model),
        prefix=prefix,
        is_castable=lambda name: hasattr(modules[f"{prefix}{name}"], "comfy_cast_weights"),
    )
    planned = plan_tree(tree, request, subject=subject)
    _log.info("%s", planned.report.text)
    _say_what_it_costs(request, subject)
    if request.eject_models:
        eject(planned.plan)
    homes = {f"{prefix}{name}": torch.device(device) for name, device in homes_of(planned.plan).items()}
    placed = PlacedPatcher.adopt(patcher)
    settle(model, homes, patcher.load_device)
    sample_without_compiler(placed)
    return placed, planned.report


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
