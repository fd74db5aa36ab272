"""Torchspan's own three nodes: the dry run, the doctor, and the release of memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import alloc_spec
from comfy_nodes import host
from comfy_nodes.host import PlacementReport, PlacementRequest
from comfy_nodes.host.app import folders, interface
from comfy_nodes.nodes._controls import read_controls
from comfy_nodes.nodes.running._output import node_output
from comfy_nodes.nodes.running._picture import picture
from comfy_nodes.nodes.running._request import placement
from comfy_nodes.nodes.table._singles import ALL_DEVICES, DOCTOR, PLAN, RELEASE
from device_placement import Finding, PlacementPlan, diagnose

if TYPE_CHECKING:
    from comfy_nodes.host import DeviceInfo

_log = logging.getLogger(__name__)

Execute = Callable[[type, Mapping[str, Any]], Any]

ALWAYS_NEW: Final = frozenset({PLAN.node_id, DOCTOR.node_id, RELEASE.node_id})
"""Nodes whose result depends on the state of the machine, so that an earlier result must not stand for it."""


def never_the_same(cls: type, /, **_inputs: Any) -> float:
    """A fingerprint that no earlier run had."""
    return time.monotonic()


def plan_request(inputs: Mapping[str, Any]) -> PlacementRequest:
    """The placement that the dry run is asked for; nothing moved means the whole model on the compute device.

    Raises:
        NodeError: a value is of a kind that the input cannot have.
        alloc_spec.AllocSpecError: the allocation cannot be read, or contradicts itself.
    """
    devices = host.device_names()
    default_gb = PLAN.default_of("virtual_ram_gb")
    controls = read_controls(inputs, devices)
    request = placement(controls, devices, default_gb=default_gb if isinstance(default_gb, float) else 0.0)
    if request.allocation is None:
        request = replace(request, allocation=alloc_spec.parse(f"{request.compute_device},*"))
    seconds = inputs.get("compute_seconds")
    return replace(request, compute_seconds=float(seconds) if seconds else None)


def exact_allocation(plan: PlacementPlan) -> str:
    """A plan as an allocation text in bytes; devices that hold nothing are left out.

    >>> from device_placement import TensorHome, UnitPlacement
    >>> homes = tuple(TensorHome(name=f"{i}", size_bytes=1 << 20, device=d) for i, d in enumerate(["cuda:0", "cpu"]))
    >>> unit = UnitPlacement(path="blocks.0", class_name="Block", kind="block", homes=homes)
    >>> exact_allocation(PlacementPlan(compute="cuda:0", donors=("cpu",), policy="stripe", slots=2, units=(unit,)))
    'cuda:0,1048576b;cpu,*'
    """
    held = [(name, plan.bytes_on(name)) for name in (plan.compute, *plan.donors) if plan.bytes_on(name)]
    *others, last = [name for name, _ in held] or [plan.compute]
    return ";".join([*(f"{name},{plan.bytes_on(name)}b" for name in others), f"{last},*"])


def describe(devices: Sequence[DeviceInfo], findings: Sequence[Finding]) -> str:
    """Devices and findings as lines of text; sizes in GiB."""
    width = max(len(name) for name in ("device", *(device.name for device in devices)))
    lines = [f"{'device':<{width}}  total GiB  free GiB  models GiB  description"]
    for device in devices:
        sizes = (device.total_bytes, device.free_bytes, device.loaded_bytes)
        total, free, loaded = (size / 2**30 for size in sizes)
        lines.append(f"{device.name:<{width}} {total:>10.2f} {free:>9.2f} {loaded:>11.2f}  {device.label}")
    for finding in findings:
        lines.append(f"{finding.level}: {finding.subject}: {finding.message}")
        lines += [f"  -> {finding.remedy}"] if finding.remedy else []
    return "\n".join(lines)


def _plan(cls: type, inputs: Mapping[str, Any]) -> Any:
    folder, _, name = inputs["model_name"].partition("/")
    bar = interface.progress_bar(2)
    report: PlacementReport = host.plan_file(folders.full_path(folder, name), plan_request(inputs))
    bar.update(1)
    _log.info("%s", report.text)
    if report.plan is None:  # plan_file plans whatever it is given
        raise AssertionError("a dry run gave no plan")
    image = picture(report.plan, report.estimate)
    bar.update(1)
    shown = interface.comfy_api().ui.PreviewImage(image, cls=cls).as_dict()
    return node_output(
        report.text, report.plan.to_json(), exact_allocation(report.plan), image, text=report.text, shown=shown
    )


def _doctor(cls: type, inputs: Mapping[str, Any]) -> Any:
    text = describe(host.available_devices(), diagnose())
    _log.info("%s", text)
    return node_output(text, text=text)


def _release(cls: type, inputs: Mapping[str, Any]) -> Any:
    device = inputs.get("device", ALL_DEVICES)
    freed = host.release(None if device == ALL_DEVICES else device)
    text = f"{alloc_spec.human_size(freed)} of models left {device}"
    _log.info("%s", text)
    return node_output(inputs.get("anything"), text, text=text)


EXECUTES: Final[Mapping[str, Execute]] = {PLAN.node_id: _plan, DOCTOR.node_id: _doctor, RELEASE.node_id: _release}
"""Node id -> what it runs."""
