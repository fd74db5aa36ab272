"""A tiny model in the patcher of a ComfyUI checkout, and a few steps of the host's own sampler."""

from __future__ import annotations

from typing import Any

import torch
from sequence_host import host, options
from sequence_tiny import normal, seeded
from torch import Tensor


def patcher(*, heads: int = 3, layers: int = 2) -> Any:
    """A tiny Wan in the host's own model and patcher classes, on the CPU."""
    sizes = {
        "image_model": "wan2.1",
        "model_type": "t2v",
        "in_dim": 16,
        "dim": heads * 24,
        "ffn_dim": 96,
        "freq_dim": 32,
        "text_dim": 20,
        "out_dim": 16,
        "num_heads": heads,
        "num_layers": layers,
        "cross_attn_norm": True,
    }
    config = host("comfy.supported_models").WAN21_T2V(sizes)
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = options()["operations"]
    cpu = torch.device("cpu")
    model = host("comfy.model_base").WAN21(config, image_to_video=False, device=cpu)
    seeded(model.diffusion_model)
    return host("comfy.model_patcher").ModelPatcher(model, cpu, cpu)


def sample(
    model: Any,
    *,
    batch: int = 1,
    texts: tuple[int, int] = (7, 9),
    cfg: float = 5.0,
    sampler: str = "euler",
    mask: bool = False,
    conditions: int = 1,
) -> Tensor:
    """Three steps of the host's sampler with guidance; the two prompts have different lengths."""
    latent = normal(batch, 16, 3, 10, 6, seed=3) if mask else torch.zeros(batch, 16, 3, 10, 6)
    noise = normal(batch, 16, 3, 10, 6, seed=5)  # the host's own draws from a generator that the threads share
    positive, negative = ([[normal(conditions, length, 20), {}]] for length in texts)
    kept = torch.rand(batch, 1, 3, 10, 6, generator=torch.Generator().manual_seed(2)).round() if mask else None
    out: Tensor = host("comfy.sample").sample(
        model, noise, 3, cfg, sampler, "simple", positive, negative, latent, disable_pbar=True, seed=5, noise_mask=kept
    )
    return out
