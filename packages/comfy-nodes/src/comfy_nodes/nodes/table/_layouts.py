"""The inputs that a placement adds behind a loader's own, one layout for each generation of nodes.

All layouts since 1.6 have the same positions: device, gigabytes, donor, expert text and at most one switch. A workflow
that was saved with one of them opens with any other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from comfy_nodes.nodes.table._widgets import Devices, Widget, combo

EXPERT_EXAMPLE: Final = "cuda:0,6gb;cpu,*"

_COMPUTE = combo(
    "compute_device",
    Devices(),
    "Where the model computes. Its weights may live elsewhere; they come here for their turn.",
    optional=True,
)
_DEVICE = combo("device", Devices(), "Where the model is loaded and computes.", optional=True)
_GIGABYTES = Widget(
    name="virtual_ram_gb",
    kind="FLOAT",
    tooltip=(
        "How much of the model leaves the compute device, in GB of 1024^3 bytes. At least this much is moved, at most "
        "one block more; 0 keeps the whole model where it computes."
    ),
    default=4.0,
    minimum=0.0,
    maximum=128.0,
    step=0.1,
    optional=True,
)
_LEGACY_GIGABYTES = replace(_GIGABYTES, name="virtual_vram_gb", maximum=24.0)
_DONOR = combo(
    "donor_device",
    Devices(),
    "Which device takes what the compute device gives up; not the compute device itself.",
    default="cpu",
    optional=True,
)
_OTHER_VRAM = Widget(
    name="use_other_vram",
    kind="BOOLEAN",
    tooltip="Fill every other accelerator first, in order, and the cpu last. Off: the cpu alone takes what is moved.",
    default=False,
    optional=True,
)
_EXPERT = Widget(
    name="expert_mode_allocations",
    kind="STRING",
    tooltip=(
        f'What lives where, in the allocation language, for example "{EXPERT_EXAMPLE}"; "auto" lets Torchspan '
        "choose. When it is not empty it decides alone, and the gigabytes and the donor above are not used."
    ),
    default="",
    optional=True,
)


def _eject(default: bool) -> Widget:
    return Widget(
        name="eject_models",
        kind="BOOLEAN",
        tooltip="Before loading, ask the host to free what this placement needs, by unloading other models.",
        default=default,
        optional=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One generation of added inputs.

    Attributes:
        name: its name in documents.
        suffix: what it appends to the id of the loader.
        category: menu entry.
        widgets: the added inputs, in order.
        deprecated: whether the host marks its nodes as superseded.
        label: what a display name adds in brackets.
        places: whether weights can be put on donors; False for a plain choice of device.
        reports: whether the node gives its tables as an output behind the loader's own.
        summary: what its nodes are for, in one sentence.
    """

    name: str
    suffix: str
    category: str
    widgets: tuple[Widget, ...]
    label: str
    summary: str
    deprecated: bool = False
    places: bool = True
    reports: bool = False


PLAIN: Final = Layout(
    name="plain device",
    suffix="MultiGPU",
    category="multigpu",
    widgets=(_DEVICE,),
    label="MultiGPU",
    places=False,
    summary="Loads the model on the device of your choice and leaves the other loaders alone.",
)
STANDARD: Final = Layout(
    name="standardized DisTorch",
    suffix="DisTorchMultiGPU",
    category="multigpu/distorch",
    widgets=(_COMPUTE, _GIGABYTES, _DONOR, _EXPERT),
    label="DisTorch, MultiGPU",
    reports=True,
    summary="Loads the model with part of its weights on another device: the same four controls for every format.",
)
DISTORCH2: Final = Layout(
    name="DisTorch2",
    suffix="DisTorch2MultiGPU",
    category="multigpu/distorch_2",
    widgets=(_COMPUTE, _GIGABYTES.renamed("virtual_vram_gb"), _DONOR, _EXPERT, _eject(True)),
    label="DisTorch2, MultiGPU",
    summary=(
        "Loads the model with part of its weights on another device, with the inputs of workflows saved with "
        "DisTorch 2."
    ),
)
DISTORCH2_ENCODER: Final = replace(
    DISTORCH2,
    name="DisTorch2, encoders",
    widgets=(_COMPUTE.renamed("device"), _GIGABYTES.renamed("virtual_vram_gb"), _DONOR, _EXPERT, _eject(False)),
)
LEGACY: Final = Layout(
    name="legacy",
    suffix="DisTorchLegacyMultiGPU",
    category="multigpu/legacy",
    widgets=(_DEVICE, _LEGACY_GIGABYTES, _OTHER_VRAM, _EXPERT),
    label="DisTorch legacy, MultiGPU",
    deprecated=True,
    summary=(
        "Loads the model with part of its weights elsewhere, with the inputs of workflows saved with the first "
        "DisTorch."
    ),
)
LEGACY_ENCODER: Final = replace(LEGACY, name="legacy, encoders", suffix="DisTorchMultiGPU")

LAYOUTS: Final = (PLAIN, STANDARD, DISTORCH2, DISTORCH2_ENCODER, LEGACY, LEGACY_ENCODER)
