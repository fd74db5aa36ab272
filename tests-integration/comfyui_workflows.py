"""Workflows in API format that sample a tiny model, small enough to read whole in a failure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfyui_checkpoints import TINY_MODELS

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
