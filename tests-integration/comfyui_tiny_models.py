"""Tiny diffusion models: classes of the ComfyUI checkout with small arguments, and seeded random weights."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from discovery_oracles import import_comfy

Weights = dict[str, torch.Tensor]
SEED = 0
CLIP_WIDTH = 768


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What a model is conditioned on, without a text encoder: `[1, tokens, width]`, seeded.

    Attributes:
        tokens: of the text.
        width: of each token.
        pooled_width: of the pooled text; 0 where the model takes none.
        mask: the model asks for an attention mask, `[1, tokens]`.
    """

    tokens: int = 7
    width: int
    pooled_width: int = 0
    mask: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyModel:
    """One architecture, small.

    Attributes:
        path: module and class in ComfyUI.
        arguments: of its constructor.
        latent_node: core node that makes an empty latent, with its inputs.
        latent_shape: of what is sampled.
        conditioning: of the sampler.
        metadata: of the file, where detection needs it.
    """

    path: str
    arguments: Mapping[str, Any]
    latent_node: tuple[str, Mapping[str, int]]
    latent_shape: tuple[int, ...]
    conditioning: Conditioning
    metadata: Mapping[str, str] = field(default_factory=dict)


_LTXV = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "cross_attention_dim": 128,
    "caption_channels": 1024,
    "num_layers": 2,
}

TINY_MODELS: Mapping[str, TinyModel] = {
    "flux": TinyModel(
        path="comfy.ldm.flux.model.Flux",
        arguments={
            "in_channels": 16,
            "out_channels": 16,
            "vec_in_dim": 32,
            "context_in_dim": 1024,
            "hidden_size": 128,
            "mlp_ratio": 4.0,
            "num_heads": 1,
            "depth": 2,
            "depth_single_blocks": 2,
            "axes_dim": [16, 56, 56],
            "theta": 10000,
            "patch_size": 2,
            "qkv_bias": True,
            "guidance_embed": True,
            "txt_ids_dims": [],
        },
        latent_node=("EmptySD3LatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        latent_shape=(1, 16, 8, 8),
        conditioning=Conditioning(width=1024, pooled_width=32),
    ),
    "wan": TinyModel(
        path="comfy.ldm.wan.model.WanModel",
        arguments={
            "model_type": "t2v",
            "dim": 128,
            "ffn_dim": 256,
            "num_layers": 2,
            "num_heads": 1,
            "text_dim": 4096,
            "cross_attn_norm": True,
        },
        latent_node=("EmptyHunyuanLatentVideo", {"width": 64, "height": 64, "length": 9, "batch_size": 1}),
        latent_shape=(1, 16, 3, 8, 8),
        conditioning=Conditioning(width=4096),
    ),
    "ltxv": TinyModel(
        path="comfy.ldm.lightricks.model.LTXVModel",
        arguments=_LTXV,
        latent_node=("EmptyLTXVLatentVideo", {"width": 128, "height": 128, "length": 17, "batch_size": 1}),
        latent_shape=(1, 128, 3, 4, 4),
        conditioning=Conditioning(width=1024, mask=True),
        metadata={"config": json.dumps({"transformer": _LTXV})},
    ),
    "sd15": TinyModel(
        path="comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",
        arguments={
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "num_res_blocks": [1],
            "channel_mult": [1],
            "transformer_depth": [1],
            "transformer_depth_output": [1, 1],
            "transformer_depth_middle": 1,
            "context_dim": CLIP_WIDTH,
            "num_heads": 8,
            "use_spatial_transformer": True,
            "legacy": False,
        },
        latent_node=("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        latent_shape=(1, 4, 8, 8),
        conditioning=Conditioning(width=CLIP_WIDTH),
    ),
}


def diffusion_weights(name: str, *, seed: int = SEED) -> Weights:
    """The float32 weights of a tiny model under the names of its architecture."""
    tiny = TINY_MODELS[name]
    module, _, class_name = tiny.path.rpartition(".")
    operations = import_comfy("comfy.ops").disable_weight_init
    model_class = getattr(import_comfy(module), class_name)
    model = model_class(**tiny.arguments, dtype=torch.float32, device=torch.device("meta"), operations=operations)
    return {key: random_tensor(key, tuple(value.shape), seed) for key, value in model.state_dict().items()}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Weights that keep activations near 1; each tensor depends on its name and the seed alone."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise * (0.5 / math.sqrt(math.prod(shape[1:])))
    if name.endswith(("weight", "scale")):
        return 1 + 0.1 * noise
    return 0.1 * noise


def save(weights: Weights, path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata=dict(metadata or {}))
    return path
