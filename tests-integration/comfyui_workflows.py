"""Workflows in API format that sample a tiny model, small enough to read whole in a failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui_tiny_models import TINY_MODELS

Node = dict[str, Any]
Workflow = dict[str, Node]


def node(class_type: str, **inputs: Any) -> Node:
    """One node; an input `["id", 0]` is the first output of the node `id`."""
    return {"class_type": class_type, "inputs": inputs}


def sampling(
    name: str,
    loader: Node,
    *,
    lora: tuple[str, float] | None = None,
    seed: int = 1,
    steps: int = 2,
    prefix: str = "out",
) -> Workflow:
    """Sample a tiny model from nothing to a saved latent.

    Args:
        name: key of `TINY_MODELS`.
        loader: the node whose first output is the model.
        lora: file and strength of a LoRA between loader and sampler.
        seed: of the noise.
        steps: of the sampler.
        prefix: of the file that is saved.
    """
    tiny = TINY_MODELS[name]
    latent, sizes = tiny.latent_node
    conditioning = tiny.conditioning
    workflow: Workflow = {
        "model": loader,
        "text": node(
            "TorchspanProbeConditioning",
            tokens=conditioning.tokens,
            width=conditioning.width,
            pooled_width=conditioning.pooled_width,
            mask=conditioning.mask,
            seed=7,
        ),
        "empty": node(latent, **sizes),
        "sample": node(
            "KSampler",
            model=["model", 0],
            positive=["text", 0],
            negative=["text", 0],
            latent_image=["empty", 0],
            seed=seed,
            steps=steps,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix=prefix),
    }
    if lora is not None:
        file, strength = lora
        workflow["lora"] = node("LoraLoaderModelOnly", model=["model", 0], lora_name=file, strength_model=strength)
        workflow["sample"]["inputs"]["model"] = ["lora", 0]
    return workflow


def stock_unet(file: str) -> Node:
    """The host's own loader of a diffusion model, as it is in the file."""
    return node("UNETLoader", unet_name=file, weight_dtype="default")


def unet_file(name: str) -> str:
    """File name of a tiny diffusion model."""
    return f"tiny_{name}.safetensors"


def with_inputs(loader: Node, **inputs: Any) -> Node:
    """The same node with other inputs besides or instead."""
    merged: Mapping[str, Any] = {**loader["inputs"], **inputs}
    return {**loader, "inputs": dict(merged)}


GGUF_FILE = "tiny_flux_q8_0.gguf"
GGUF_DENSE = "tiny_flux_q8_0_dense.safetensors"
SPLIT = "npu:0,25%;npu:1,40%;cpu,*"
"""Compute device and both kinds of donor, for models of any size."""


def plain(file: str) -> Node:
    """All on one device that the node chooses."""
    return _loader(file, "MultiGPU", device="npu:1")


def standardized(file: str) -> Node:
    """The four controls: what the compute device lacks is on a donor."""
    return _loader(
        file,
        "DisTorchMultiGPU",
        compute_device="npu:0",
        virtual_ram_gb=0.001,
        donor_device="npu:2",
        expert_mode_allocations="",
    )


def standardized_cpu(file: str) -> Node:
    """More virtual memory than the model has: all of it goes to the host's memory."""
    return with_inputs(standardized(file), virtual_ram_gb=4.0, donor_device="cpu")


def distorch2(file: str) -> Node:
    """The published successor, with its own names."""
    return _loader(
        file,
        "DisTorch2MultiGPU",
        compute_device="npu:0",
        virtual_vram_gb=0.001,
        donor_device="npu:1",
        expert_mode_allocations="",
        eject_models=True,
    )


def expert(file: str) -> Node:
    """A text in the allocation language."""
    return with_inputs(standardized(file), expert_mode_allocations=SPLIT)


def legacy(file: str) -> Node:
    """The oldest layout, whose donor is a choice between the host's memory and all other accelerators."""
    return _loader(
        file,
        "DisTorchLegacyMultiGPU",
        device="npu:0",
        virtual_vram_gb=0.001,
        use_other_vram=True,
        expert_mode_allocations="",
    )


def _loader(file: str, kind: str, **inputs: Any) -> Node:
    if file.endswith(".gguf"):
        return node(f"UnetLoaderGGUF{kind}", unet_name=file, **inputs)
    return node(f"UNETLoader{kind}", unet_name=file, weight_dtype="default", **inputs)
