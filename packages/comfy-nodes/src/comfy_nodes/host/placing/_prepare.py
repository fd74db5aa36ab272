"""What is known of a load before any weight is read: headers, compute device and plan, each made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alloc_spec import AllocationSpec
from comfy_nodes.host._errors import ModelFileError
from comfy_nodes.host._request import PlacementRequest
from comfy_nodes.host.app import _compat
from comfy_nodes.host.app._machine import known_device
from comfy_nodes.host.placing._headers import ModelHeader, has_header, read_model_header
from comfy_nodes.host.placing._planning import Planned, compute_device, plan_tree, tree_of

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request that has been checked against files and machine.

    Attributes:
        request: what was asked for.
        subject: what the log calls the model.
        compute: name of the device that computes.
        headers: of the files that have one, in order.
        planned: the plan, where the sizes of the loaded model are known from one header; else None.
    """

    request: PlacementRequest
    subject: str
    compute: str
    headers: tuple[ModelHeader, ...] = ()
    planned: Planned | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The host's model options: load for the compute device, and wait in the host's memory until then."""
        if self.request.compute_device is None and not self.request.is_placed:
            return {}
        return {"load_device": torch.device(self.compute), "offload_device": CPU}


def prepare(
    paths: Sequence[str | Path],
    request: PlacementRequest,
    *,
    subject: str | None = None,
    prefix: str | None = "",
    dtype: torch.dtype | None = None,
    check: Callable[[ModelHeader], None] | None = None,
) -> Prepared:
    """Check a request before anything is loaded, and plan it where the header is enough.

    Refused are a file that is missing, cut off or a LoRA, a device that is not there, and an allocation that does not
    fit a model whose loaded size is known.

    Args:
        paths: of the files.
        request: where the model computes and where its bytes live.
        subject: what the log calls the model; the names of the files where None.
        prefix: of the names in the file that are placed; None for those of the diffusion model.
        dtype: type in which the host loads weights; None where it chooses.
        check: refuses a header of something else.

    Raises:
        HostError: see `plan_tree`.
        alloc_spec.AllocSpecError, device_placement.PlacementError: the allocation does not fit.
    """
    compute = compute_device(request)
    subject = subject or " + ".join(Path(path).name for path in paths)
    headers = tuple(read_model_header(path) for path in paths if has_header(path) or not Path(path).is_file())
    for header in headers:
        if header.is_lora:
            remedy = "choose the model that it was made for, and apply the LoRA to it"
            raise ModelFileError(header.path, "it is a LoRA, not a model", remedy)
        if check is not None:
            check(header)
    if isinstance(request.allocation, AllocationSpec):
        for name in request.allocation.devices:
            known_device(name)
    planned = None
    if request.is_placed and len(paths) == len(headers) == 1:
        planned = _planned(headers[0], request, compute, subject=subject, prefix=prefix, dtype=dtype)
    return Prepared(request=request, subject=subject, compute=compute, headers=headers, planned=planned)


def prepare_part(file: Prepared, request: PlacementRequest, *, subject: str) -> Prepared:
    """The same for another part of a file that is prepared; it is planned when it is loaded.

    Raises:
        UnknownDeviceError: this machine does not have a device.
    """
    if isinstance(request.allocation, AllocationSpec):
        for name in request.allocation.devices:
            known_device(name)
    return Prepared(request=request, subject=subject, compute=compute_device(request), headers=file.headers)


def _planned(
    header: ModelHeader,
    request: PlacementRequest,
    compute: str,
    *,
    subject: str,
    prefix: str | None,
    dtype: torch.dtype | None,
) -> Planned | None:
    if header.gguf is None and dtype is None and not _compat.keeps_half_precision():
        return None
    loaded = header.loaded_sizes(None if dtype is None else dtype.itemsize)
    if loaded is None:
        return None
    tree = tree_of(header.path, loaded, header.prefix if prefix is None else prefix)
    return plan_tree(tree, request, compute, subject=subject)
