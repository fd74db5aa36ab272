"""The host adapter: the only part of Torchspan that imports ComfyUI.

A loader function takes file paths, the core loader's own options and a `PlacementRequest`, and returns the host's own
object. Its weights are placed when the host loads it, through the host's own accounting, and nothing of the host is
patched. Requests and reports are plain data and need no host; everything else imports it when it is first asked for.

May import: nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from comfy_nodes.host._errors import HostError, ModelFileError, PlacementRefusedError, UnknownDeviceError
from comfy_nodes.host._request import Allocation, Checkpoint, Loaded, PlacementReport, PlacementRequest

if TYPE_CHECKING:
    from comfy_nodes.host._devices import DeviceInfo, available_devices, device_names, release
    from comfy_nodes.host._gguf_loaders import load_gguf_diffusion_model, load_gguf_text_encoders
    from comfy_nodes.host._loaders import (
        load_checkpoint,
        load_diffusers,
        load_diffusion_model,
        load_text_encoders,
    )
    from comfy_nodes.host._parts import load_clip_vision, load_controlnet, load_vae
    from comfy_nodes.host._planning import plan_file
else:
    _NEED_HOST = {
        "DeviceInfo": "_devices",
        "available_devices": "_devices",
        "device_names": "_devices",
        "load_checkpoint": "_loaders",
        "load_clip_vision": "_parts",
        "load_controlnet": "_parts",
        "load_diffusers": "_loaders",
        "load_diffusion_model": "_loaders",
        "load_gguf_diffusion_model": "_gguf_loaders",
        "load_gguf_text_encoders": "_gguf_loaders",
        "load_text_encoders": "_loaders",
        "load_vae": "_parts",
        "plan_file": "_planning",
        "release": "_devices",
    }

    def __getattr__(name: str) -> object:
        """Import what needs the host when it is first asked for."""
        if name not in _NEED_HOST:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"{__name__}.{_NEED_HOST[name]}"), name)
        return value


__all__ = [
    "Allocation",
    "Checkpoint",
    "DeviceInfo",
    "HostError",
    "Loaded",
    "ModelFileError",
    "PlacementRefusedError",
    "PlacementReport",
    "PlacementRequest",
    "UnknownDeviceError",
    "available_devices",
    "device_names",
    "load_checkpoint",
    "load_clip_vision",
    "load_controlnet",
    "load_diffusers",
    "load_diffusion_model",
    "load_gguf_diffusion_model",
    "load_gguf_text_encoders",
    "load_text_encoders",
    "load_vae",
    "plan_file",
    "release",
]
