"""The ComfyUI checkout for the tests that need one, imported for the CPU."""

from __future__ import annotations

from typing import Any

import torch
from sequence_tiny import normal
from torch import Tensor

from discovery_oracles import import_comfy
from get_comfyui import find_comfyui

MISSING = "no ComfyUI checkout at COMFYUI_PATH or ~/.cache/torchspan/ComfyUI"


def found() -> bool:
    """Whether there is a checkout."""
    return find_comfyui() is not None


def host(module: str) -> Any:
    """A module of the host; its log, which tells about the machine at import, is left out."""
    return import_comfy(module)


def flux_sizes(heads: int) -> dict[str, Any]:
    """Sizes of the blocks that Flux, Chroma and HunyuanVideo share in the host."""
    return {
        "context_in_dim": 20,
        "hidden_size": heads * 16,
        "mlp_ratio": 2.0,
        "num_heads": heads,
        "depth": 2,
        "depth_single_blocks": 2,
    }


def call(x: Tensor, *, time: float, text: int = 7, times: str = "timestep", **more: Any) -> dict[str, Any]:
    """What every sampler of the host calls a model with, latents, noise level and text, and `more`."""
    batch = x.shape[0]
    return {"x": x, times: torch.full((batch,), time), "context": normal(batch, text, 20), **more}


def options() -> dict[str, Any]:
    """What every model class of the host takes: element type, device and layer classes."""
    return {"dtype": torch.float32, "device": "cpu", "operations": host("comfy.ops").disable_weight_init}
