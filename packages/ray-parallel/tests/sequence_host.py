"""The ComfyUI checkout for the tests that need one, imported for the CPU."""

from __future__ import annotations

from typing import Any

import torch

from discovery_oracles import import_comfy
from get_comfyui import find_comfyui

MISSING = "no ComfyUI checkout at COMFYUI_PATH or ~/.cache/torchspan/ComfyUI"


def found() -> bool:
    """Whether there is a checkout."""
    return find_comfyui() is not None


def host(module: str) -> Any:
    """A module of the host; its log, which tells about the machine at import, is left out."""
    return import_comfy(module)


def options() -> dict[str, Any]:
    """What every model class of the host takes: element type, device and layer classes."""
    return {"dtype": torch.float32, "device": "cpu", "operations": host("comfy.ops").disable_weight_init}
