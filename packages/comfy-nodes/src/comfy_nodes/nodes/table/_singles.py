"""Nodes that are no variant of a loader: checkpoints part by part, helpers, and Torchspan's own three."""

from __future__ import annotations

from typing import Final

from comfy_nodes.nodes.table._layouts import DISTORCH2, EXPERT_EXAMPLE, PLAIN, STANDARD
from comfy_nodes.nodes.table._loaders import CLIP, LOADERS, MODEL, VAE
from comfy_nodes.nodes.table._row import NodeRow
from comfy_nodes.nodes.table._siblings import DEVICE_TYPE
from comfy_nodes.nodes.table._widgets import Devices, Files, Output, Widget, combo, link

ALL_DEVICES: Final = "all devices"
PLANNED_FOLDERS: Final = ("diffusion_models", "checkpoints", "text_encoders")

_CHECKPOINT: Final = LOADERS["CheckpointLoaderSimple"]
_PARTS: Final = {"unet": "the diffusion model", "clip": "the text encoder", "vae": "the VAE"}


def _device_of(part: str, name: str = "device") -> Widget:
    return combo(f"{part}_{name}", Devices(), f"Where {_PARTS[part]} computes.")


def _gigabytes_of(part: str, default: float) -> Widget:
    return Widget(
        name=f"{part}_virtual_vram_gb",
        kind="FLOAT",
        tooltip=f"How much of {_PARTS[part]} leaves its compute device, in GB of 1024^3 bytes.",
        default=default,
        minimum=0.0,
        maximum=128.0,
        step=0.1,
    )


def _donor_of(part: str) -> Widget:
    return combo(
        f"{part}_donor_device",
        Devices(),
        f"Which device takes what the compute device of {_PARTS[part]} gives up.",
        default="cpu",
    )


def _expert_of(part: str) -> Widget:
    return Widget(
        name=f"{part}_expert_mode_allocations",
        kind="STRING",
        tooltip=f'What of {_PARTS[part]} lives where, for example "{EXPERT_EXAMPLE}". Not empty, it decides alone.',
        default="",
        optional=True,
    )


def _switch(name: str, tooltip: str) -> Widget:
    return Widget(name=name, kind="BOOLEAN", tooltip=tooltip, default=True, optional=True)


CHECKPOINT_PARTS: Final = NodeRow(
    node_id="CheckpointLoaderAdvancedMultiGPU",
    display_name="Load Checkpoint in Parts (MultiGPU)",
    category=PLAIN.category,
    summary="Reads a checkpoint once and loads its diffusion model, text encoder and VAE on a device each.",
    widgets=(*_CHECKPOINT.widgets, _device_of("unet"), _device_of("clip"), _device_of("vae")),
    outputs=(MODEL, CLIP, VAE),
)

CHECKPOINT_PARTS_DISTORCH2: Final = NodeRow(
    node_id="CheckpointLoaderAdvancedDisTorch2MultiGPU",
    display_name="Load Checkpoint in Parts (DisTorch2, MultiGPU)",
    category=DISTORCH2.category,
    summary="Reads a checkpoint once and places its diffusion model and its text encoder separately.",
    widgets=(
        *_CHECKPOINT.widgets,
        _device_of("unet", "compute_device"),
        _gigabytes_of("unet", 4.0),
        _donor_of("unet"),
        _device_of("clip", "compute_device"),
        _gigabytes_of("clip", 2.0),
        _donor_of("clip"),
        _device_of("vae"),
        _expert_of("unet"),
        _expert_of("clip"),
        _switch("high_precision_loras", "Kept for saved workflows: LoRAs are always applied at full quality."),
        _switch(
            "eject_models", "Before loading, ask the host to free what this placement needs, by unloading other models."
        ),
    ),
    outputs=(MODEL, CLIP, VAE),
)

DEVICE_SELECTOR: Final = NodeRow(
    node_id="DeviceSelectorMultiGPU",
    display_name="Select Device (MultiGPU)",
    category=PLAIN.category,
    summary="Hands one device to several nodes that take it through a socket, such as those of WanVideoWrapper.",
    widgets=(combo("device", Devices(), "The device that is handed on."),),
    outputs=(Output(io_type=DEVICE_TYPE, name="device", tooltip="The device."),),
)

UNET_LOW_PRECISION: Final = NodeRow(
    node_id="UNetLoaderLP",
    display_name="Load Diffusion Model (LP)",
    category="loaders",
    summary=(
        "Loads a diffusion model where the host would; for workflows that have it. It once kept LoRAs in lower "
        "precision to save memory; here they are always applied at full quality."
    ),
    widgets=LOADERS["UNETLoader"].widgets[:1],
    outputs=(MODEL,),
    deprecated=True,
)

PLAN: Final = NodeRow(
    node_id="TorchspanPlan",
    display_name="Plan a Placement (Torchspan)",
    category=PLAIN.category,
    summary=(
        "A dry run: reads the header of a model file, plans where its bytes would live on this machine and predicts "
        "what that costs. Nothing is loaded."
    ),
    widgets=(
        combo(
            "model_name", Files(folders=PLANNED_FOLDERS, qualified=True), "The model file, with the folder it is in."
        ),
        *STANDARD.widgets,
        Widget(
            name="compute_seconds",
            kind="FLOAT",
            tooltip=(
                "Seconds of one pass with every weight resident, to make the prediction complete. 0 when unknown: the "
                "slowdown is then given for passes of four lengths."
            ),
            default=0.0,
            minimum=0.0,
            maximum=3600.0,
            step=0.01,
            optional=True,
        ),
    ),
    outputs=(
        Output(io_type="STRING", name="report", tooltip="The three tables, the prediction and all warnings."),
        Output(io_type="STRING", name="plan_json", tooltip="The plan as JSON, as device_placement reads it."),
        Output(
            io_type="STRING",
            name="allocation",
            tooltip="The same placement in exact bytes, for expert_mode_allocations.",
        ),
        Output(io_type="IMAGE", name="picture", tooltip="What lives where, as a picture."),
    ),
    is_output=True,
)

DOCTOR: Final = NodeRow(
    node_id="TorchspanDoctor",
    display_name="Which Devices Are Seen (Torchspan)",
    category=PLAIN.category,
    summary="Lists the devices that models can use, with their memory, and explains why there are not more.",
    widgets=(),
    outputs=(Output(io_type="STRING", name="report", tooltip="Devices, findings and remedies."),),
    is_output=True,
)

RELEASE: Final = NodeRow(
    node_id="TorchspanRelease",
    display_name="Release Memory (Torchspan)",
    category=PLAIN.category,
    summary="Unloads models from one device or all of them, at this point of the workflow, and passes its input on.",
    widgets=(
        link("anything", "*", "Passed on unchanged; memory is released when it has arrived.", optional=True),
        combo(
            "device",
            Devices(before=(ALL_DEVICES,)),
            "The device whose models are unloaded.",
            default=ALL_DEVICES,
            optional=True,
        ),
    ),
    outputs=(
        Output(io_type="*", name="anything", tooltip="The input, unchanged."),
        Output(io_type="STRING", name="report", tooltip="How much was released."),
    ),
    is_output=True,
)

SINGLES: Final = (
    CHECKPOINT_PARTS,
    CHECKPOINT_PARTS_DISTORCH2,
    DEVICE_SELECTOR,
    UNET_LOW_PRECISION,
    PLAN,
    DOCTOR,
    RELEASE,
)
