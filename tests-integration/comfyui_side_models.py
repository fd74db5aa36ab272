"""Tiny models that work beside a diffusion model: ControlNets, an image encoder, a folder in diffusers' layout.

Where the host fixes a shape, the layers that no test looks at are zero and only pass on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from comfyui_tiny_models import SEED, TINY_MODELS, Weights, random_tensor, save
from discovery_oracles import import_comfy

CONTROL_NET = "tiny_control.safetensors"
DIFFERENCE = "tiny_control_difference.safetensors"
IMAGE_ENCODER = "tiny_vision.safetensors"
DIFFUSERS = "tiny_sdxs"
HINT_CHANNELS = 3


def control_weights() -> Weights:
    """A ControlNet for the tiny SD 1.5, as `control_model.*`."""
    arguments = dict(TINY_MODELS["sd15"].arguments)
    for name in ("out_channels", "transformer_depth_output", "legacy"):
        del arguments[name]
    operations = import_comfy("comfy.ops").disable_weight_init
    with torch.device("meta"):
        model = import_comfy("comfy.cldm.cldm").ControlNet(
            **arguments, hint_channels=HINT_CHANNELS, operations=operations
        )
    return {
        f"control_model.{key}": random_tensor(key, tuple(value.shape), SEED)
        for key, value in model.state_dict().items()
    }


def write_control_net(folder: Path) -> Path:
    """Write `controlnet/tiny_control.safetensors`."""
    return save(control_weights(), folder / "controlnet" / CONTROL_NET)


def write_difference(folder: Path) -> Path:
    """Write `controlnet/tiny_control_difference.safetensors`: what is to be added to the weights of the model."""
    return save({**control_weights(), "difference": torch.zeros(1)}, folder / "controlnet" / DIFFERENCE)


def write_image_encoder(folder: Path) -> Path:
    """Write `clip_vision/tiny_vision.safetensors`: CLIP ViT-L in float16, 600 MB, the last 22 layers zero."""
    vision = import_comfy("comfy.clip_vision")
    config = Path(vision.__file__).with_name("clip_vision_config_vitl.json")
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in vision.ClipVisionModel(str(config)).get_sd().items()}

    def passes_on(key: str) -> bool:
        _, _, layer = key.partition(".layers.")
        return bool(layer) and int(layer.partition(".")[0]) > 1 and "norm" not in key

    weights = {
        key: (torch.zeros(shape) if passes_on(key) else random_tensor(key, shape, SEED)).half()
        for key, shape in shapes.items()
    }
    return save(weights, folder / "clip_vision" / IMAGE_ENCODER)


def write_diffusers(folder: Path) -> Path:
    """Write `diffusers/tiny_sdxs` with diffusers and transformers themselves, in float16, 1 GB.

    The host knows UNets in this layout by their shape alone; that of SDXS is the smallest of them.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(SEED)
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            mid_block_type=None,
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=768,
            attention_head_dim=8,
        ),
        "vae": AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
        ),
    }
    target = folder / "diffusers" / DIFFUSERS
    for name, part in parts.items():
        part.half().save_pretrained(target / name)
    # As in the folders that people have: newer releases of transformers leave out what stands before the names.
    encoder = {
        f"text_model.{key.removeprefix('text_model.')}": value
        for key, value in parts["text_encoder"].state_dict().items()
    }
    save(encoder, target / "text_encoder" / "model.safetensors")
    index = {name: [type(part).__module__.partition(".")[0], type(part).__name__] for name, part in parts.items()}
    (target / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    return target
